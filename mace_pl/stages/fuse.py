"""Stage 3: all LoRAs and the refinement in one edit, by a closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning import Trainer

from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import fuse
from mace_pl.methods.edit import Edit, Factors
from mace_pl.methods.fusion import fusion
from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.stages.refine import Refined
from mace_pl.training.sharding import Share
from mace_pl.training.trainer import gathered


@dataclass(frozen=True)
class Trained:
    """What stage 2 leaves.

    Attributes:
        factors: the LoRA of each target: (A [R, D], B [O, R]) by layer name.
        losses: of each target's steps.
    """

    factors: Mapping[str, Factors]
    losses: Mapping[str, Sequence[float]]


def gather_trained(
    trainer: Trainer, loras: ConceptLoRAs | None, share: Share, losses: Mapping[str, Sequence[float]]
) -> Trained:
    """What all ranks have trained so far, on each of them. All ranks call this together.

    Args:
        trainer: the Trainer.
        loras: of all concepts, with what this rank has trained of its own; None where nothing is trained.
        share: which are its own.
        losses: of its own.
    """
    own = {} if loras is None else {loras.targets[c]: loras.factors(c) for c in share.concepts}
    factors, all_losses = dict[str, Factors](), dict[str, Sequence[float]]()
    for others, values in gathered(trainer, (own, losses)):
        factors |= others
        all_losses |= values
    return Trained(factors, all_losses)


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
