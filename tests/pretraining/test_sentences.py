"""Captions of sentences and descriptions: nothing that is held out is ever trained on, and no description names."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest

from mace_pl.concepts.sentences import with_article
from mace_pl.files.paths import resolve
from mace_pl.pretraining.captions import read_rows
from mace_pl.pretraining.sentences import (
    Grammar,
    Shares,
    describe,
    fill,
    plain_text,
    read_grammar,
    rich_caption,
)
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.pretraining.styles import MANNERS

FOLDER = resolve("mace_pl/pretraining/emoji")
ROWS = read_rows(FOLDER / "metadata.jsonl")
NAMES = {row["concept"]: {row["concept"], *row.get("synonyms", [])} for row in ROWS}
OWN = ("a", "the", "name")


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return read_grammar(FOLDER)


def says(text: str, names: set[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{re.escape(name)}s?\b", text)]


def pattern(shape: str, grammar: Grammar) -> re.Pattern[str]:
    """Any sentence of a shape about a ship."""
    slots = {"a": ["a ship"], "the": ["the ship"], "name": ["ship"], **grammar.slots}
    parts = re.split(r"\{(\w+)\}", shape)
    fillers = [f"({'|'.join(map(re.escape, slots[slot]))})" for slot in parts[1::2]]
    fixed = map(re.escape, parts[::2])
    return re.compile("".join(itertools.chain.from_iterable(itertools.zip_longest(fixed, fillers, fillvalue=""))))


def descriptions(grammar: Grammar, concept: str) -> set[str]:
    """All that the grammar can say of a concept in training."""
    parts = grammar.descriptions[concept]
    features = [*parts["features"], *(" and ".join(two) for two in itertools.permutations(parts["features"], 2))]
    return {f"{thing} that {feature}" for thing in parts["things"] for feature in features}


def test_there_is_enough_of_everything(grammar: Grammar) -> None:
    assert len(set(grammar.training)) >= 100 and len(set(grammar.held_out)) >= 12
    assert len(grammar.descriptions) >= 30 and grammar.descriptions.keys() <= NAMES.keys()
    assert all(len(descriptions(grammar, concept)) >= 30 for concept in grammar.descriptions)
    slots = [(shape, slot) for shape in grammar.training for slot in named(shape)]
    first, last = ({s for s, slot in slots if getattr(s, where)(slot)} for where in ("startswith", "endswith"))
    assert all(len(some) >= 10 for some in (first, last, {s for s, _ in slots} - first - last))


def named(shape: str) -> list[str]:
    return re.findall(r"\{(?:a|the|name)\}", shape)


def test_every_shape_names_the_concept_once_and_has_fillers(grammar: Grammar) -> None:
    for shape in [*grammar.training, *grammar.held_out]:
        assert len(named(shape)) == 1, shape
        assert set(re.findall(r"\{(\w+)\}", shape)) <= {*OWN, *grammar.slots}, shape


def test_held_out_sentences_are_never_trained_on(grammar: Grammar) -> None:
    rng = random.Random(0)
    trained = [pattern(shape, grammar) for shape in grammar.training]
    for held in grammar.held_out:
        said = {fill(held, "ship", grammar, rng) for _ in range(20)}
        assert all(pattern(held, grammar).fullmatch(text) for text in said)
        assert not [text for text in said if any(shape.fullmatch(text) for shape in trained)], held


def test_held_out_descriptions_are_never_trained_on(grammar: Grammar) -> None:
    for concept, parts in grammar.descriptions.items():
        assert parts["held_out"] and not set(parts["held_out"]) & descriptions(grammar, concept)


def test_no_description_names_its_concept_and_no_sentence_another(grammar: Grammar) -> None:
    for concept, parts in grammar.descriptions.items():
        for text in itertools.chain.from_iterable(parts.values()):
            assert not says(text, NAMES[concept]), (concept, text)
    everything = set().union(*NAMES.values())
    for text in [*grammar.training, *grammar.held_out, *itertools.chain.from_iterable(grammar.slots.values())]:
        assert not says(text, everything), text


def test_what_is_made_is_of_the_grammar(grammar: Grammar) -> None:
    rng = random.Random(0)
    assert fill("{a} and {the}, a {name}", "owl", grammar, rng) == "an owl and the owl, a owl"
    assert with_article("ship") == "a ship"
    for _ in range(50):
        assert describe("ship", grammar, rng) in descriptions(grammar, "ship")
    row = next(row for row in ROWS if row["concept"] == "ship")
    said = {plain_text(row, grammar, Shares(0.0, 1.0), rng) for _ in range(50)}
    assert not [text for text in said if says(text, NAMES["ship"])]
    trained = [pattern(shape, grammar) for shape in grammar.training]
    said = {plain_text({**row, "synonyms": []}, grammar, Shares(1.0, 0.0), rng) for _ in range(50)}
    assert all(any(shape.fullmatch(text) for shape in trained) for text in said)
    with pytest.raises(ValueError, match="slot 'nobody' without fillers"):
        fill("{nobody} saw {a}", "ship", grammar, rng)


def test_a_manner_is_always_named_and_a_collection_never_beside_it(grammar: Grammar) -> None:
    rng = random.Random(0)
    row = next(row for row in ROWS if row["style"] == "twemoji")
    captions = [rich_caption(row, "Velmora", grammar, Shares(0.4, 0.4), rng) for _ in range(100)]
    assert all("Velmora" in caption and "twemoji" not in caption for caption in captions)
    captions = [rich_caption(row, None, grammar, Shares(0.4, 0.4), rng) for _ in range(100)]
    assert {"twemoji" in caption for caption in captions} == {True, False}


def test_images_are_in_the_manner_that_their_captions_name() -> None:
    data = SpriteImages(images=120, resolution=16, manners=0.5, sentences=0.5, descriptions=0.5)
    pool, again = data.make_pool(), data.make_pool()
    assert pool.captions == again.captions and pool.images.equal(again.images)
    for caption, style in zip(pool.captions, pool.styles, strict=True):
        assert [manner for manner in MANNERS if manner in caption] == [style] * (style in MANNERS)
    assert {style in MANNERS for style in pool.styles} == {True, False}
    with pytest.raises(ValueError, match=r"manners=1\.5 must lie between 0 and 1"):
        SpriteImages(manners=1.5)


def test_a_folder_without_the_grammar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no sentences\.json"):
        read_grammar(tmp_path)
    (tmp_path / "sentences.json").write_text('{"slots": {}, "training": []}')
    (tmp_path / "descriptions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lacks \['held_out'\]"):
        read_grammar(tmp_path)
