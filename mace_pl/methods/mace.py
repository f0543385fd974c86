"""MACE (Lu et al., CVPR 2024): its refinement alone, and all three stages."""

from __future__ import annotations

from typing import Literal, get_args

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Down, Sums, Tokens
from mace_pl.methods.closed_form import refine
from mace_pl.methods.edit import Edit


class MaceRefinement(ClosedForm):
    """Stage 1 of MACE alone: T = (G + S)(F + S)⁻¹; nothing is trained and no image is needed.

    Args:
        tokens: ``coexisting`` maps the tokens beside the target to those of the anchor's prompt (the paper), ``all``
            maps all tokens, position by position.
    """

    source = "the refinement of MACE (Lu et al., CVPR 2024)"
    by_number = True

    def __init__(self, tokens: Literal["coexisting", "all"] = "coexisting") -> None:
        self.tokens: Tokens = tokens

    def solve(self, sums: Sums) -> Edit:
        """See :func:`mace_pl.methods.closed_form.refine`."""
        return Edit(refine(sums.F, sums.G, sums.preservation))


class Mace(ClosedForm):
    """All three stages: a refinement, a LoRA per concept on top of it, and the closed-form fusion.

    Args:
        refinement: the closed form of stage 1, any that trains nothing; MACE's own when None.
        down: ``trained``, A and B of the LoRAs B A are trained (the paper); ``gram``, A is fixed to the leading
            generalised eigenvectors of the target's prompts and of what stage 3 preserves, and B alone is trained. It
            wants a prior or a domain: without, A reads what all prompts share.
        groups: with ``gram``, targets that share an A, from the sum of their prompts, by a name of their own:
            ``{animals: [cat, dog]}``. The others have an A each.
    """

    source = "MACE (Lu et al., CVPR 2024)"
    trains = True

    def __init__(
        self, refinement: ClosedForm | None = None, down: Down = "trained", groups: dict[str, list[str]] | None = None
    ) -> None:
        self.refinement = refinement or MaceRefinement()
        if self.refinement.trains:
            raise UserError(
                f"model.method.refinement={type(self.refinement).__name__} trains LoRAs itself. Choose a closed form "
                f"alone, such as MaceRefinement."
            )
        if not isinstance(self.refinement, MaceRefinement):
            self.source = f"{type(self).source} on top of {self.refinement.source}"
        self.tokens = self.refinement.tokens
        self.anchored, self.takes_strength = self.refinement.anchored, self.refinement.takes_strength
        self.weighs = self.refinement.weighs
        self.reads_names, self.by_number = self.refinement.reads_names, self.refinement.by_number
        self.down: Down = down
        self.groups = groups or {}
        if down not in get_args(Down):
            raise UserError(f"model.method.down={down!r} is unknown. Choose from {', '.join(get_args(Down))}.")
        if groups and down != "gram":
            raise UserError(
                f"model.method.groups has no effect with down={down}: each target trains an A of its own. Leave it "
                f"out, or pass --model.method.down gram."
            )

    @property
    def one_matrix(self) -> bool:
        """Of the refinement."""
        return self.refinement.one_matrix

    def solve(self, sums: Sums) -> Edit:
        """The edit of the refinement."""
        return self.refinement.solve(sums)

    def __repr__(self) -> str:
        more = f", down={self.down!r}, groups={self.groups!r}" if self.down != "trained" else ""
        return f"Mace(refinement={self.refinement!r}{more})"
