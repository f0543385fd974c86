"""What log says of strengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from mace_pl.files.artifacts import write_json
from mace_pl.files.versions import STATE, STATES
from mace_pl.library.history import STRENGTHS, Event
from mace_pl.library.log import with_strengths


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        (STRENGTHS, ["ship 0.5", "dog 1", "cat left out"]),
        ("add", ["ship 0.5", "dog", "cat"]),  # one that comes at full strength needs no figure
    ],
)
def test_the_history_shows_strengths(action: str, shown: list[str], tmp_path: Path) -> None:
    state = tmp_path / STATES / ("1" * 64)
    state.mkdir(parents=True)
    event = Event(action, state.name, targets=("ship", "dog", "cat"))
    assert with_strengths(tmp_path, event) == ["ship", "dog", "cat"], (
        "of a state that cannot be read they are not known"
    )
    write_json(state / STATE, {"entries": {"ship": "a", "dog": "b"}, "weights": {"ship": 0.5, "dog": 1.0}, "moved": {}})
    assert with_strengths(tmp_path, event) == shown
