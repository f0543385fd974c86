"""What is searched: the weights of the closed forms that a run has terms for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mace_pl.concepts.preservation import StageWeights
from mace_pl.methods.closed_form import Preservation
from mace_pl.stages.again import Again

FAINT = (1e-4, 1.0)  # a weight that was 0, as a part of the one that makes its term as large as the targets' sum


def terms_of(preservation: Preservation) -> dict[str, float]:
    """The traces of the terms that have statistics; that of the identity is D."""
    width = next((len(S) for S in (preservation.prior, preservation.domain) if S is not None), 0)
    found = {"identity": float(width)}
    for name in ("prior", "domain"):
        statistics = getattr(preservation, name)
        if statistics is not None:
            found[name] = float(statistics.double().trace())
    return found


def space_of(again: Again, spread: float) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """The ranges by ``stage.term``, and where the search starts: at the run's own weights.

    Args:
        again: the run.
        spread: the factor by which a weight may fall and rise.
    """
    stages = {"refine": (again.preserved.refine, float(again.total.F.trace()))}
    if again.method.trains:
        stages["fuse"] = (again.preserved.fuse, float(again.total.F_all.trace()))
    ranges, start = {}, {}
    for stage, (kept, trace) in stages.items():
        now = {"identity": kept.identity, "prior": kept.prior_weight, "domain": kept.domain_weight}
        for term, size in (terms_of(kept) | {"identity": float(len(again.total.F))}).items():
            even = trace / size if size else 1.0
            ends = (now[term] / spread, now[term] * spread) if now[term] else (FAINT[0] * even, FAINT[1] * even)
            ranges[f"{stage}.{term}"] = ends
            start[f"{stage}.{term}"] = now[term] or ends[0]
    return ranges, start


def stage_weights(weights: Mapping[str, float]) -> list[StageWeights]:
    """Those of stages 1 and 3, from weights by ``stage.term``; of a method without LoRAs the second is not used."""
    found: list[Any] = []
    for stage in ("refine", "fuse"):
        own = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith(f"{stage}.")}
        found.append(StageWeights(**own))
    return found
