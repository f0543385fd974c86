"""The LoRAs of stage 2 as they start: A drawn and trained, or fixed to directions that prompts and statistics give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.names import clean_names
from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import down_projection, factored
from mace_pl.methods.edit import summed
from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.models.backbone import Backbone
from mace_pl.stages.refine import Refined


def check_down(method: ClosedForm, concepts: Sequence[Concept], rank: int, backbone: Backbone) -> None:
    """Refuse what no fixed A can be made from, before anything is generated.

    Raises:
        UserError: a rank above the text's width, or a group that names what is no target.
    """
    if method.down != "gram":
        return
    width = int(backbone.encode([""])[0].shape[-1])
    if rank > width:
        raise UserError(
            f"model.rank={rank} must be at most {width} with model.method.down=gram: the text embeddings have no more "
            f"directions. Choose a smaller one (the paper uses 1)."
        )
    targets = [concept.target for concept in concepts]
    members = [member for group in groups_of(method) for member in group]
    for member in members:
        if member not in targets:
            raise UserError(f"model.method.groups: {member!r} is no target. Choose from {', '.join(targets)}.")
        if members.count(member) > 1:
            raise UserError(f"model.method.groups: {member!r} is there twice. A target has one A: name it once.")


def groups_of(method: ClosedForm) -> list[tuple[str, ...]]:
    """The targets that share an A, spelt as targets are."""
    return [tuple(clean_names(own, f"model.method.groups: {name}")) for name, own in method.groups.items()]


def new_loras(
    backbone: Backbone, concepts: Sequence[Concept], refined: Refined, method: ClosedForm, rank: int, seed: int
) -> ConceptLoRAs:
    """Put LoRAs in place of the keys and values, one per concept.

    Args:
        backbone: the refined model, changed in place.
        concepts: what is erased.
        refined: what stage 1 made.
        method: of which ``down`` and ``groups`` count.
        rank: of each.
        seed: the run's.

    Raises:
        UserError: nothing fills the directions that the preserved statistics leave open.
    """
    targets = [concept.target for concept in concepts]
    down = fixed_down(refined, targets, method, rank) if method.down == "gram" else None
    return ConceptLoRAs(backbone.network, targets, rank, seed, down)


def fixed_down(refined: Refined, targets: Sequence[str], method: ClosedForm, rank: int) -> list[Tensor]:
    """A [R, D] of each target in float64: of its own F_i, or of the sum over its group.

    S is what stage 3 preserves: with one concept and M = F_i + S, A F_i M⁻¹ is A with each row times λ / (1 + λ), so
    that the fusion leaves the directions where they were trained.
    """
    preserved = refined.preserved.fuse
    width = len(refined.edit.R)
    S = preserved.statistics(width) + preserved.identity * torch.eye(width, dtype=torch.float64)
    factor = factored(S, preserved, "fuse")
    groups = groups_of(method)
    sharing = [next((group for group in groups if target in group), (target,)) for target in targets]
    made: dict[tuple[str, ...], Tensor] = {}
    for members in sharing:
        if members not in made:
            made[members] = down_projection(summed(refined.sums[m] for m in members).F_all, factor, rank)
    return [made[members] for members in sharing]
