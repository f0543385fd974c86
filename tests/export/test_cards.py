"""What the cards of a pipeline and of a LoRA say of targets that are erased in part, or preserved."""

from __future__ import annotations

import pytest

from mace_pl.export.lora_card import lora_card
from mace_pl.export.model_card import model_card

CONCEPTS = [{"target": name, "anchor": "sky", "kind": "object"} for name in ("ship", "dog", "cat")]
SEEN = {"ship": {"before": 1.0, "after": 0.0}}


def cards(weights: dict[str, float] | None) -> list[str]:
    """Both cards."""
    metadata = {"pretrained": "base", "concepts": CONCEPTS, "weights": weights}
    return [
        model_card(None, "base", CONCEPTS, {}, None, weights, seen=SEEN),
        lora_card("lora", "name", None, metadata, {}, None, 4, 0.01, seen=SEEN),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_a_target_that_is_preserved_is_not_said_to_be_erased(which: int) -> None:
    card = cards({"ship": 0.0, "dog": 0.5})[which]
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert title.endswith("base without dog (strength 0.5), cat")
    for row in (
        "| ship | sky | object | 0 (preserved) |",
        "| dog | sky | object | 0.5 |",
        "| cat | sky | object | 1 |",
    ):
        assert row in card
    assert "before and after the run that brought it, at full\nstrength" in card


@pytest.mark.parametrize("which", [0, 1])
def test_the_example_asks_for_what_is_no_target(which: int) -> None:
    card = cards(None)[which]
    assert 'pipeline("a photo of a house")' in card and "photo of a dog" not in card


@pytest.mark.parametrize("which", [0, 1])
def test_an_edit_that_preserves_all_says_so(which: int) -> None:
    assert "base without anything taken out" in cards({"ship": 0, "dog": 0, "cat": 0})[which]
