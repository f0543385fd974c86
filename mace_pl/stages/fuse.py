"""Stage 3: all LoRAs and the refinement in one edit, by a closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import fuse
from mace_pl.methods.edit import Edit, Factors
from mace_pl.methods.fusion import fusion
from mace_pl.stages.refine import Refined


@dataclass(frozen=True)
class Trained:
    """What stage 2 leaves.

    Attributes:
        factors: the LoRA of each target: (A [R, D], B [O, R]) by layer name.
        losses: of each target's steps.
    """

    factors: Mapping[str, Factors]
    losses: Mapping[str, Sequence[float]]


def fuse_concepts(refined: Refined, trained: Trained) -> Edit:
    """The whole edit: R and a LoRA where something was trained, else that of stage 1 alone.

    Raises:
        UserError: the system is singular.
    """
    if not trained.factors:
        return refined.edit
    return fusion(refined.edit, refined.sums, trained.factors, refined.preserved.fuse)


def check_fusion(refined: Refined, method: ClosedForm) -> None:
    """Refuse a stage 3 that cannot be solved, before anything is trained for it.

    Raises:
        UserError: the system is singular; the message says what to raise.
    """
    if method.trains:
        fuse(refined.edit.R, refined.sums.total.F_all, refined.preserved.fuse)
