"""Everyday sentences and descriptions as captions, by the grammar in ``sentences.json`` and ``descriptions.json``.

Both files lie beside the sprites. A sentence is a shape with slots: ``{a}`` is "a ship" or "an airplane", ``{the}`` is
"the ship", ``{name}`` the bare name, every other slot one of its fillers. A description is one of a concept's
``things`` with one or two of its ``features``, and names neither the concept nor a synonym. What is ``held_out`` is
never trained on: it asks for the same words in another order, or for other words around the name.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mace_pl.concepts.sentences import filled
from mace_pl.errors import UserError
from mace_pl.pretraining.captions import COLOURED, COLOURS, PERSON, STYLED, SYNONYM, TEMPLATES

STYLE_ENDS = (
    " in {} style",
    " in the style of {}",
    " in the manner of {}",
    ", {} art",
    " by {}",
    " painted by {}",
)
STYLE_STARTS = ("in the style of {}, ", "in the manner of {}, ", "{} art of ", "{} style, ")
FRAMES = ("{}", "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}")  # around descriptions
STARTS = 0.2  # share of the named styles that come first
DEFINITE = 0.3  # share of the names after a template that get "the"
GRAMMATICAL = 0.5  # share of the captions with "an" before a vowel: templates of evaluation put "a" before any name


@dataclass(frozen=True)
class Grammar:
    """What captions are made of.

    Args:
        slots: fillers by the name of their slot.
        training: shapes of sentences that are trained on.
        held_out: shapes that are not.
        descriptions: by concept, its ``things``, ``features`` and ``held_out`` descriptions.
    """

    slots: Mapping[str, Sequence[str]]
    training: Sequence[str]
    held_out: Sequence[str]
    descriptions: Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Shares:
    """How many of the captions are sentences, and how many of those of a described concept are descriptions."""

    sentences: float
    descriptions: float


def read_grammar(folder: Path) -> Grammar:
    """The grammar beside the sprites in ``folder``.

    Raises:
        UserError: a file is missing or lacks a part.
    """
    content: dict[str, Any] = {}
    for name in ("sentences", "descriptions"):
        file = folder / f"{name}.json"
        if not file.is_file():
            raise UserError(f"folder={folder} has no {file.name}. Add it, or set data.sentences and descriptions to 0.")
        content[name] = json.loads(file.read_text(encoding="utf-8"))
    missing = [part for part in ("slots", "training", "held_out") if part not in content["sentences"]]
    if missing:
        raise UserError(f"folder={folder}: sentences.json lacks {missing}.")
    return Grammar(**content["sentences"], descriptions=content["descriptions"])


def fill(shape: str, name: str, grammar: Grammar, rng: random.Random) -> str:
    """The sentence of a shape about ``name``.

    Raises:
        UserError: a slot without fillers.
    """
    return filled(shape, name, grammar.slots, rng)


def describe(concept: str, grammar: Grammar, rng: random.Random) -> str:
    """A description of training: a thing with one or two features."""
    parts = grammar.descriptions[concept]
    features = rng.sample(parts["features"], rng.randint(1, 2))
    return f"{rng.choice(parts['things'])} that {' and '.join(features)}"


def name_of(row: Mapping[str, Any], rng: random.Random) -> str:
    """The concept of a sprite, now and then by a synonym, and a character as a person."""
    if row.get("synonyms") and rng.random() < SYNONYM:
        return str(rng.choice(row["synonyms"]))
    if row["kind"] == "character" and rng.random() < PERSON:
        return "person"
    return str(row["concept"])


def plain_text(row: Mapping[str, Any], grammar: Grammar, shares: Shares, rng: random.Random) -> str:
    """What the caption says of the concept, without style and background."""
    if row["concept"] in grammar.descriptions and rng.random() < shares.descriptions:
        return rng.choice(FRAMES).format(describe(row["concept"], grammar, rng))
    name = name_of(row, rng)
    if rng.random() < shares.sentences:
        return fill(rng.choice(grammar.training), name, grammar, rng)
    text = rng.choice(TEMPLATES).format(name)
    text = text.replace(" of a ", " of the ") if rng.random() < DEFINITE else text
    return re.sub(r"\ba (?=[aeiou])", "an ", text) if rng.random() < GRAMMATICAL else text


def rich_caption(
    row: Mapping[str, Any], manner: str | None, grammar: Grammar, shares: Shares, rng: random.Random
) -> str:
    """A caption of a sprite: template, sentence or description, with its style and background.

    A painter's manner is always named, the collection that a sprite is of now and then; with a manner it never is.
    """
    text = plain_text(row, grammar, shares, rng)
    style = manner or (row["style"] if rng.random() < STYLED else None)
    if style is not None:
        if rng.random() < STARTS:
            text = rng.choice(STYLE_STARTS).format(style) + text
        else:
            text += rng.choice(STYLE_ENDS).format(style)
    if rng.random() < COLOURED:
        text += f" on a {rng.choice(COLOURS)} background"
    return text
