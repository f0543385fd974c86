"""Prompts of increasing distance from the bare name: with attributes, in sentences, by description."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.concepts.sentences import ABOUT, filled
from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.files.tables import read_yaml

NAME, ATTRIBUTES, SENTENCES, SYNONYMS, DESCRIPTIONS = "name", "attributes", "sentences", "synonyms", "descriptions"
LEVELS = (NAME, ATTRIBUTES, SENTENCES, SYNONYMS, DESCRIPTIONS)  # from the nearest to the farthest
PROMPTS = 5  # of a name at each level
SEEDS = 5  # of each prompt
SHAPES = (  # with attributes, where a file has none
    "a photo of a small {name}",
    "a photo of {a} on a blue background",
    "a photo of {a} on a red background",
    "a drawing of {a} on a yellow background",
    "a big {name} in the middle",
)


@dataclass(frozen=True)
class Asked:
    """A prompt of a level.

    Attributes:
        level: one of :data:`LEVELS`.
        name: what an answer shows.
        prompt: what is asked.
        rest: the prompt without the name; empty where nothing is left.
    """

    level: str
    name: str
    prompt: str
    rest: str = ""


def asked_prompts(names: Sequence[str], sentences: str | None, descriptions: str | None) -> list[Asked]:
    """The prompts with attributes, in sentences and by description; the same ones whenever the files are the same.

    Args:
        names: what they are about.
        sentences: a JSON or YAML file with ``held_out`` sentences, ``slots`` and ``attributes``.
        descriptions: one with descriptions by name: a list, or ``held_out`` with a list.

    Raises:
        UserError: a file that cannot be read, or without what it should hold.
    """
    asked = []
    if sentences is not None:
        content = _mapping(sentences, "data.sentences")
        slots = content.get("slots", {})
        shapes = {ATTRIBUTES: content.get("attributes", list(SHAPES)), SENTENCES: content.get("held_out")}
        for level, given in shapes.items():
            known = _texts(given, f"data.sentences: {sentences}: {'held_out' if level == SENTENCES else level}")
            unnamed = next((shape for shape in known if not any(f"{{{slot}}}" in shape for slot in ABOUT)), None)
            if unnamed is not None:
                raise UserError(f"data.sentences: {sentences}: {unnamed!r} needs {{a}}, {{the}} or {{name}}.")
            asked += [one for name in names for one in _about(name, level, known, slots, sentences)]
    if descriptions is not None:
        asked += _described(names, descriptions)
    return asked


def _about(
    name: str, level: str, shapes: Sequence[str], slots: Mapping[str, Sequence[str]], source: str
) -> list[Asked]:
    """Some prompts of a level about a name."""
    picked = random.Random(f"{level} {name}").sample(list(shapes), min(PROMPTS, len(shapes)))
    texts = []
    for shape in picked:
        text, rest = (
            filled(shape, about, slots, random.Random(f"{shape} {name}"), f"data.sentences: {source}")
            for about in (name, "")
        )
        texts.append(Asked(level, name, text, " ".join(rest.split())))
    return texts


def _described(names: Sequence[str], source: str) -> list[Asked]:
    """The descriptions of a file."""
    content = _mapping(source, "data.descriptions")
    by_name = {clean_name(name, "data.descriptions"): given for name, given in content.items()}
    if not set(by_name) & set(names):
        raise UserError(f"data.descriptions: {source} describes none of data.names={list(names)}. Describe one.")
    asked = []
    for name in (name for name in names if name in by_name):
        given = by_name[name].get("held_out") if isinstance(by_name[name], Mapping) else by_name[name]
        texts = _texts(given, f"data.descriptions: {source}: {name}")[:PROMPTS]
        asked += [Asked(DESCRIPTIONS, name, text) for text in texts]
    return asked


def _mapping(source: str, setting: str) -> Mapping[str, Any]:
    """What a file of prompts holds."""
    path = resolve(source)
    if not path.is_file():
        raise UserError(f"{setting}={source} is no file. Give a JSON or YAML file.")
    content = read_yaml(path, setting)
    if not isinstance(content, Mapping):
        raise UserError(f"{setting}: {source} holds no mapping. See docs/evaluation.md for its shape.")
    return content


def _texts(given: Any, where: str) -> list[str]:
    """A list of texts, at least one."""
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        raise UserError(f"{where} must be a list of texts, at least one.")
    return clean_names(given, where)
