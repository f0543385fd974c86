"""The switches between the paper's equation and the published experiments reach the loss of a run."""

from __future__ import annotations

from pathlib import Path

from support.runs import CONCEPTS, train


def test_switches_of_the_loss_reach_it(toy_pipeline: Path, tmp_path: Path) -> None:
    """With norms n of L layers (Σ n)² / L ≤ Σ n² ≤ (Σ n)², by Cauchy and Schwarz; padding adds to each norm."""
    few = {"steps_per_concept": 1, "images_per_concept": 1, "image_steps": 1}
    found: dict[tuple[bool, bool], float] = {}
    for squared in (False, True):
        for padding in (False, True):
            switches = {"squared_loss": squared, "attend_padding": padding}
            module = train(toy_pipeline, tmp_path, CONCEPTS[:1], few, **switches)
            (found[squared, padding],) = module.trained.losses["ship"]
    layers = len(module.refined.original) // 2  # a key and a value each
    for padding in (False, True):
        assert found[False, padding] ** 2 / layers < found[True, padding] < found[False, padding] ** 2
    for squared in (False, True):
        assert found[squared, False] < found[squared, True]
