"""Concepts of another run that are erased beside a run's own: their sums enter stage 1 too."""

from __future__ import annotations

from typing import Any

from mace_pl.files.identity import hash_files
from mace_pl.methods.edit import SumsOnDisk
from mace_pl.run import Run


def with_beside(sums: SumsOnDisk, beside: Run | None) -> SumsOnDisk:
    """The sums of a run's own concepts, and those of the others in another run, at full strength as its own.

    A LoRA is trained for all strengths: what a strength changes is solved, so that none is trained again for it.

    Args:
        sums: of the run's own concepts, which come last.
        beside: the other run; None for none.

    Raises:
        UserError: a file of it is not there or cannot be read.
    """
    if beside is None:
        return sums
    joined = SumsOnDisk()
    for target in beside.targets:
        if target not in sums:
            joined.add(target, beside.concept(target)[0])
    for target in sums:
        joined.add(target, sums.read(target))
    return joined


def beside_inputs(beside: Run) -> dict[str, Any]:
    """What decides the sums of another run, for the identity of a run beside it."""
    return {"sums": hash_files([beside.statistics_file(target) for target in beside.targets])}
