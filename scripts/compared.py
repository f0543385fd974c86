"""What ``compare_methods.py`` compares: vocabularies, sets of targets, methods with their settings and spaces."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.files.tables import read_yaml
from mace_pl.methods import ClosedForm

Settings = Mapping[str, Any]  # by the names of fit, as refine.identity


@dataclass(frozen=True)
class Vocabulary:
    """What is asked for and judged.

    Attributes:
        names: the classes; every name is asked for.
        keep: the keep list of every method: names, or files of names.
        synonyms: of names, asked for where a set erases them.
        others: further classes of the judges, such as anchors: without them no judge sees one.
        anchors: file of names, among which anchors are chosen where a set names none.
        judged: whether names are concepts or styles to the convolutional judge.
        templates: the prompts.
        sentences: file of levels of prompts.
        descriptions: file of descriptions, another level.
        seeds: images of each word and template that are reported.
        level_seeds: images of each prompt of a level.
        trial_seeds: images of each name and template by which settings are chosen.
        beside: another vocabulary, whose names are looked at too.
    """

    names: Sequence[str]
    keep: Sequence[str]
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: Sequence[str] = ()
    anchors: str | None = None
    judged: Literal["concepts", "styles"] = "concepts"
    templates: Sequence[str] = ("a photo of a {}",)
    sentences: str | None = None
    descriptions: str | None = None
    seeds: int = 10
    level_seeds: int = 2
    trial_seeds: int = 4
    beside: str | None = None


@dataclass(frozen=True)
class Targets:
    """A set of targets: its name, its vocabulary by name, and concepts as ``data.concepts`` of fit has them.

    Those without an anchor get one of ``anchors``, by the rule of ``anchor: auto``.
    """

    name: str
    vocabulary: str
    concepts: Sequence[Mapping[str, str]]
    anchors: Sequence[str] = ()


@dataclass(frozen=True)
class Method:
    """A method: its class, its published settings, and the ranges and choices that are searched."""

    name: str
    class_path: str
    published: Settings
    space: Mapping[str, Any]

    def made(self, settings: Settings) -> ClosedForm:
        """The closed form with the settings of its class."""
        module, _, name = self.class_path.rpartition(".")
        own = {key.removeprefix("method."): v for key, v in settings.items() if key.startswith("method.")}
        found: ClosedForm = getattr(importlib.import_module(module), name)(**own)
        return found

    def trial(self, number: int, seed: int) -> dict[str, Any]:
        """The settings of a trial: the published ones first, then random ones, equal in every run and for every set."""
        if number == 0:
            return dict(self.published)
        rng = np.random.default_rng([seed, number])
        return {**self.published, **{key: drawn(spec, rng) for key, spec in self.space.items()}}


def drawn(spec: Any, rng: np.random.Generator) -> Any:
    """One of the choices ``{of: [...]}``, or a number of the range [low, high], log-uniform; four digits are kept."""
    if isinstance(spec, Mapping):
        return spec["of"][int(rng.integers(len(spec["of"])))]
    low, high = spec
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return round(value) if isinstance(low, int) and isinstance(high, int) else float(f"{value:.4g}")


def read_sets(file: Path) -> tuple[dict[str, Vocabulary], dict[str, Targets]]:
    """Vocabularies and sets of targets by name.

    Raises:
        UserError: a set whose vocabulary or target is not there.
    """
    content = read_yaml(file, "targets")
    vocabularies, sets = read_vocabularies(content, file), {}
    for name, given in content["sets"].items():
        vocabulary = vocabularies.get(given["vocabulary"])
        if vocabulary is None:
            raise UserError(f"{file}: {name}: vocabulary {given['vocabulary']!r} is none of {list(vocabularies)}.")
        concepts, among = given["concepts"], vocabulary.anchors
        if isinstance(concepts, str):
            data = read_yaml(Path(concepts), "targets")["data"]
            concepts, among = data["concepts"], data.get("anchors")
        anchors = read_names(among, "anchors")
        unknown = [c["target"] for c in concepts if c["target"] not in vocabulary.names]
        if unknown:
            raise UserError(f"{file}: {name}: {', '.join(unknown)} not among the names of {given['vocabulary']!r}.")
        sets[name] = Targets(name, given["vocabulary"], concepts, anchors)
    return vocabularies, sets


def read_vocabularies(content: Mapping[str, Any], file: Path) -> dict[str, Vocabulary]:
    """The vocabularies of a file by name; the classes of a judge are names, then others that are none of them."""
    vocabularies = {}
    for name, given in content["vocabularies"].items():
        names, keep = given["names"], [one for part in given["keep"] for one in listed(part)]
        names = read_names(names, f"{file}: {name}") if isinstance(names, str) else names
        others = [one for part in given.get("others", ()) for one in listed(part) if one not in names]
        vocabularies[name] = Vocabulary(**{**given, "names": names, "keep": keep, "others": others})
    return vocabularies


def listed(part: str) -> list[str]:
    """A name, or those of a text file."""
    return read_names(part, "keep") if part.endswith(".txt") else [part]


def read_methods(file: Path) -> dict[str, Method]:
    """The methods by name."""
    return {name: Method(name, **given) for name, given in read_yaml(file, "methods").items()}


def with_seeds(vocabulary: Vocabulary, given: Mapping[str, int | None]) -> Vocabulary:
    """Other numbers of images, where they are given."""
    return replace(vocabulary, **{key: value for key, value in given.items() if value is not None})


def chosen(known: Mapping[str, Any], wanted: Sequence[str] | None, setting: str) -> dict[str, Any]:
    """What is wanted of what is known, all of it when None.

    Raises:
        UserError: something that is not known.
    """
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        raise UserError(f"{setting}={wanted}: {', '.join(unknown)} is unknown. Choose from {', '.join(known)}.")
    return {name: known[name] for name in (known if wanted is None else wanted)}
