"""The comparison of trained and fixed down-projections: which edit is chosen, and what is read out of losses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def down() -> Iterator[ModuleType]:
    """The script as a module; it imports others from its folder."""
    folder = str(ROOT / "scripts")
    sys.path.insert(0, folder)
    try:
        yield __import__("down")
    finally:
        sys.path.remove(folder)
        for name in ("down", "runs", "written"):
            sys.modules.pop(name, None)


def test_losses_are_told_as_parts_of_the_refined_models(down: ModuleType) -> None:
    """Of two concepts the mean of the parts, not of the losses; the step is the last of its window."""
    plain = {"ship": [2.0] * 20, "dog": [10.0] * 20}
    half = {"ship": [2.0] * 10 + [1.0] * 10, "dog": [10.0] * 10 + [6.8] * 10}
    losses = {"one trained 0": plain, "one gram 10": half}
    # means of five steps, of which one to five are at 0.59: 0.918, 0.836, 0.754, 0.672, 0.59
    assert down.reached(losses, "one gram 10", "one trained 0") == ["0.59", "11", "12", "13", "14", "15"]


def test_learning_rates_are_chosen_by_seeds_that_are_not_reported(down: ModuleType, tmp_path: Path) -> None:
    task = down.tasks()["one"]
    chosen_by, reported = "100 to 103", "0 to 3"

    def row(way: str, rate: float, chosen: float, told: float) -> dict[str, object]:
        scores = {"acc_e": 0.1, "acc_s": 0.9, "acc_n": 0.8}
        cell = {"task": "one", "way": way, "rate": rate, "steps": 50}
        return cell | {chosen_by: {"h_c": chosen}, reported: scores | {"h_c": told}}

    rows = [row("trained", 1, 0.5, 0.6), row("trained", 3, 0.7, 0.4), row("gram", 1, 0.9, 0.8), row("gram", 10, 0.2, 1)]
    score = down.Scorer(tmp_path, {"rows": rows, "losses": {}})
    lines = down.cells("one", task, score, 4, 4)
    assert [(line[2], line[3], line[-1]) for line in lines] == [
        ("trained", "config's, × 1", "0.600"),
        ("trained", "best of 2, × 3", "0.400"),
        ("gram", "config's, × 1", "0.800"),
        ("gram", "best of 2, × 1", "0.800"),
    ]
    assert not list(tmp_path.iterdir())  # everything was scored


def test_every_task_names_what_is_generated(down: ModuleType) -> None:
    sizes = {name: (len(task.targets), len(task.names)) for name, task in down.tasks().items()}
    assert sizes == {"one": (1, 10), "ten": (10, 20), "forty": (40, 94)}
    for task in down.tasks().values():
        assert set(task.targets) < set(task.names)
