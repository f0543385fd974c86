"""What is searched: the weights of the closed forms that a run has terms for, and the strengths of its targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mace_pl.concepts.preservation import StageWeights
from mace_pl.errors import UserError
from mace_pl.methods.closed_form import even_weights
from mace_pl.stages.again import Again
from mace_pl.tuning.pick import Tried
from mace_pl.tuning.search import Space

FAINT = (1e-4, 1.0)  # a weight that was 0, relative to the sum of the targets
STRENGTH = "strength"  # of a target, as ``strength.ship``
LEAST = 0.25  # the least strength that is tried: below it a target is hardly erased
FEW = 4  # targets: with six weights ten numbers, of which forty trials say something


def space_of(again: Again, spread: float, strengths: bool | None) -> tuple[Space, dict[str, float]]:
    """The ranges by ``stage.term`` and ``strength.target``, and where the search starts: as the run is.

    Args:
        again: the run.
        spread: the factor by which a weight may fall and rise.
        strengths: whether those of the targets are searched too; of two to four targets when None.

    Raises:
        UserError: strengths of a method that takes none, or nothing to search.
    """
    stages = {"refine": (again.preserved.refine, again.total.F)} if again.method.weighs else {}
    if again.method.trains:
        stages["fuse"] = (again.preserved.fuse, again.total.F_all)
    ranges: dict[str, tuple[float, float]] = {}
    start = {}
    for stage, (kept, F) in stages.items():
        now = {"identity": kept.identity, "prior": kept.prior_weight, "domain": kept.domain_weight}
        for term, even in even_weights(kept, F).items():
            if not even:  # a term without statistics
                continue
            ends = (now[term] / spread, now[term] * spread) if now[term] else (FAINT[0] * even, FAINT[1] * even)
            ranges[f"{stage}.{term}"] = ends
            start[f"{stage}.{term}"] = now[term] or ends[0]
    for target, own in strengths_of(again, strengths).items():
        ranges[f"{STRENGTH}.{target}"] = (min(LEAST, own), 1.0)
        start[f"{STRENGTH}.{target}"] = own
    if not ranges:
        raise UserError(
            f"run: {again.method!r} has no weights, so there is nothing to search. Try its own settings by fit, which "
            f"docs/options.md lists."
        )
    return ranges, start


def strengths_of(again: Again, wanted: bool | None) -> dict[str, float]:
    """The strengths that are searched, as they are; a target that is not erased at all stays so.

    Raises:
        UserError: the method takes none.
    """
    takes = again.method.takes_strength
    if wanted and not takes:
        raise UserError(f"strengths=true: {again.method!r} takes no strength: it erases a target or does not.")
    few = 2 <= len(again.strengths) <= FEW
    searched = takes and few if wanted is None else wanted
    return {target: own for target, own in again.strengths.items() if own > 0} if searched else {}


def stage_weights(values: Mapping[str, float]) -> list[StageWeights]:
    """Those of stages 1 and 3, from values by ``stage.term``; of a method without LoRAs the second is not used."""
    found = []
    for stage in ("refine", "fuse"):
        identity, prior, domain = (values.get(f"{stage}.{term}", 0.0) for term in ("identity", "prior", "domain"))
        found.append(StageWeights(identity, prior, domain))
    return found


def strengths_in(values: Mapping[str, float]) -> dict[str, float]:
    """Those by target, from values by ``strength.target``."""
    start = f"{STRENGTH}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def changed(picked: Tried) -> dict[str, Any]:
    """The values as ``fuse`` takes them."""
    found: dict[str, Any] = {}
    for key, value in picked.values.items():
        stage, _, term = key.partition(".")
        if stage in ("refine", "fuse"):
            found.setdefault(stage, {"absolute": True})[term] = value
    return found
