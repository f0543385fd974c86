"""What images show in place of a target: each image is counted once, and a failed erasure is told."""

from __future__ import annotations

import pytest
import torch

from mace_pl.evaluation.shares import FAILS, SHARES, destinations, failures, unknown_anchors
from mace_pl.evaluation.words import Words

WORDS = Words(["ship", "house", "dog"], {"ship": ["boat"]}, ["building"], {"house": ["building"]})


def test_each_image_belongs_to_one_share() -> None:
    """Classes: ship, house, dog, building. An empty image shows nothing whatever is seen, and a target is no anchor."""
    seen, empty = torch.tensor([0, 1, 3, 2, -1, 0, 1]), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    found = destinations(seen, empty, WORDS.same("ship"), WORDS.same("house"))
    assert [SHARES[i] for i in found.argmax(0)] == ["target", "anchor", "anchor", "other", "other", "empty", "empty"]
    assert found.sum(0).tolist() == [1] * len(seen)
    both = destinations(seen, empty, WORDS.same("ship"), [0, 1])
    assert both[:2].sum(1).tolist() == [1, 1], "the target's class among those of the anchor"


@pytest.mark.parametrize(
    ("erased", "synonyms", "said"),
    [
        ({"empty": FAILS}, {"empty": None}, []),
        ({"empty": 0.5}, {}, ["50% of the images of what is erased are empty"]),
        ({}, {"empty": 0.03}, ["3% of the images of its synonyms are empty"]),
    ],
)
def test_more_empty_images_than_a_few_are_a_failure(
    erased: dict[str, float], synonyms: dict[str, float | None], said: list[str]
) -> None:
    assert failures(erased, synonyms) == said


def test_an_anchor_that_is_no_class_is_named_once() -> None:
    anchors = {"ship": "sea", "dog": "sea", "house": "building", "cat": None}
    assert unknown_anchors(WORDS, anchors) == ["images of the anchor 'sea' count as other: name it in model.names"]
