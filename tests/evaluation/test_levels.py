"""Rates by levels of prompts, by hand."""

from __future__ import annotations

from typing import Any

import torch

from mace_pl.data.levels import ATTRIBUTES, DESCRIPTIONS, SENTENCES, Asked
from mace_pl.evaluation.levels import Seen, level_results, original_levels
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.evaluation.score_tables import score_tables
from mace_pl.evaluation.words import Words

WORDS = Words(["ship", "dog", "cat"], {"ship": ["boat"]}, ["house"])
ASKED = [
    Asked(ATTRIBUTES, "ship", "a red ship", "a red"),
    Asked(ATTRIBUTES, "dog", "a red dog", "a red"),
    Asked(SENTENCES, "ship", "look, a ship", "look,"),
    Asked(SENTENCES, "ship", "there is a ship", "there is"),
    Asked(DESCRIPTIONS, "cat", "it purrs"),
    Asked(DESCRIPTIONS, "dog", "it barks"),
]


def tables(seen: list[list[int]], empty: list[list[int]] | None = None, score: float = 0.0) -> dict[str, torch.Tensor]:
    """[R, 1, S] of one judge; −2 where no image is."""
    values = torch.tensor(seen).unsqueeze(1)
    blank = torch.zeros_like(values) if empty is None else torch.tensor(empty).unsqueeze(1)
    return {
        "seen": values.clamp(min=-1),
        "empty": blank,
        "generated": (values > -2).long(),
        "clip_score": torch.full(values.shape, score, dtype=torch.float64),
    }


def found(anchor: str | None = "house") -> dict[str, Any]:
    before = tables([[0] * 5, [1] * 5, [2] * 5, [0, 0, 1, 1, 1]])  # ship, dog, cat; boat in two of five
    after = tables([[3, 3, 1, 0, 3], [1] * 5, [2, 2, 0, 0, 2], [1] * 5])
    # the original answers "a red ship" with four of five, "there is a ship" with three of five
    asked_before = tables([[0, 0, 0, 0, 1], [1] * 5, [0] * 5, [0, 0, 0, 1, 1], [2] * 5, [0] * 5], score=20.0)
    asked_after = tables(
        [[3] * 5, [1, 1, 1, 1, 0], [-1, 3, 0, 3, 1], [0] * 5, [2] * 5, [1] * 5],
        [[0] * 5, [0] * 5, [1, 0, 0, 0, 0], [0] * 5, [0] * 5, [0] * 5],
        score=18.0,
    )
    seen = Seen(WORDS, {"ship": anchor}, ["dog"], before, after, ASKED, asked_before, asked_after)
    return level_results(seen.all())


def test_only_what_the_original_answers_counts() -> None:
    levels = found()
    assert list(levels) == ["name", "attributes", "sentences", "synonyms", "descriptions"]
    assert levels["sentences"]["asked"] == {"target": 2, "near": 0, "far": 0}
    assert levels["sentences"]["counted"] == {"target": 1, "near": 0, "far": 0}
    assert levels["synonyms"]["counted"]["target"] == 0 and levels["synonyms"]["target"] is None
    assert levels["descriptions"]["asked"] == {"target": 0, "near": 1, "far": 1}
    assert levels["descriptions"]["counted"] == {"target": 0, "near": 0, "far": 1}


def test_rates_by_hand() -> None:
    levels = found()
    name, red, said = levels["name"], levels["attributes"], levels["sentences"]
    assert [name[key] for key in ("target", "anchor", "other", "empty")] == [0.2, 0.6, 0.2, 0]
    assert (name["near"], name["far"], name["rest"]) == (1, 0.6, None)
    assert (red["anchor"], red["near"], red["far"], red["rest"]) == (1, 0.8, None, [20, 18])
    assert red["before"] == {"target": 0.8, "near": 1, "far": None}
    assert [said[key] for key in ("target", "anchor", "other", "empty")] == [0.2, 0.4, 0.2, 0.2]
    assert levels["descriptions"]["far"] == 1 and levels["descriptions"]["near"] is None


def test_the_share_of_an_anchor_that_is_no_class_is_unknown() -> None:
    levels = found("sky")
    assert levels["name"]["anchor"] is None and levels["name"]["other"] == 0.8


def test_levels_are_a_table_that_says_what_was_left_out() -> None:
    when = {"top1": {"acc_e": 0.2, "acc_s": 0.8, "h": 0.8}, "shares": {}}
    run = {"before": when, "after": when, "fails": [], "levels": found()}
    table = score_tables({ORIGINAL: {"levels": {}}, "run": run}, None)[1]
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["sentences"]["prompts that count"] == "1 of 2, 0 of 0, 0 of 0"
    assert (rows["sentences"]["empty"], rows["attributes"]["rest"]) == ("✗ 0.200", "20.0 → 18.0")
    assert rows["synonyms"]["target"] == "–" and "80%" in table.notes[0]


def test_the_original_alone_says_what_it_answers() -> None:
    main = tables([[0] * 5, [1, 1, 1, 0, 0], [2] * 5, [0, 0, 0, 0, 1]])
    asked = tables([[0] * 5, [1] * 5, [0] * 5, [1] * 5, [2] * 5, [1] * 5])
    levels = original_levels(WORDS, main, ASKED, asked)
    assert levels["name"]["answered"] == 2 and levels["synonyms"] == {"asked": 1, "answered": 1, "seen": 0.8}
    assert levels["sentences"] == {"asked": 2, "answered": 1, "seen": 0.5}
    top1 = {"acc_s": 0.8}
    table = score_tables({ORIGINAL: {"top1": top1, "levels": levels}}, None)[1]
    assert ["original", "sentences", "0.500", "1 of 2"] in table.rows
