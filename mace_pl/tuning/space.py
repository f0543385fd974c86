"""What is searched: the weights of the closed forms that a run has terms for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mace_pl.concepts.preservation import StageWeights
from mace_pl.methods.closed_form import even_weights
from mace_pl.stages.again import Again
from mace_pl.tuning.pick import Tried

FAINT = (1e-4, 1.0)  # a weight that was 0, relative to the sum of the targets


def space_of(again: Again, spread: float) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """The ranges by ``stage.term``, and where the search starts: at the run's own weights.

    Args:
        again: the run.
        spread: the factor by which a weight may fall and rise.
    """
    stages = {"refine": (again.preserved.refine, again.total.F)}
    if again.method.trains:
        stages["fuse"] = (again.preserved.fuse, again.total.F_all)
    ranges, start = {}, {}
    for stage, (kept, F) in stages.items():
        now = {"identity": kept.identity, "prior": kept.prior_weight, "domain": kept.domain_weight}
        for term, even in even_weights(kept, F).items():
            if not even:  # a term without statistics
                continue
            ends = (now[term] / spread, now[term] * spread) if now[term] else (FAINT[0] * even, FAINT[1] * even)
            ranges[f"{stage}.{term}"] = ends
            start[f"{stage}.{term}"] = now[term] or ends[0]
    return ranges, start


def stage_weights(weights: Mapping[str, float]) -> list[StageWeights]:
    """Those of stages 1 and 3, from weights by ``stage.term``; of a method without LoRAs the second is not used."""
    found = []
    for stage in ("refine", "fuse"):
        identity, prior, domain = (weights.get(f"{stage}.{term}", 0.0) for term in ("identity", "prior", "domain"))
        found.append(StageWeights(identity, prior, domain))
    return found


def changed(picked: Tried) -> dict[str, Any]:
    """The weights as ``fuse`` takes them."""
    stages: dict[str, dict[str, float]] = {}
    for key, value in picked.weights.items():
        stage, _, term = key.partition(".")
        stages.setdefault(stage, {"absolute": True})[term] = value
    return dict(stages)
