"""The nearest name for one that is misspelt."""

from __future__ import annotations

import pytest

from mace_pl.errors import nearest

KEYS = ("model.lr", "model.variant", "model.rank", "data.templates", "data.concepts", "model.method.strength")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.rnak", " The nearest that exists is model.rank."),
        ("model.templates", " The nearest that exists is data.templates."),
        ("modle.lr", " The nearest that exists is model.lr."),
        ("model.learning_rate", ""),  # what shares no more than "model." is no help
    ],
)
def test_keys_are_compared_by_what_follows_their_parent(name: str, said: str) -> None:
    assert nearest(name, KEYS) == said
