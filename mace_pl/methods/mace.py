"""MACE (Lu et al., CVPR 2024): its refinement alone, and all three stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from mace_pl.methods.base import ClosedForm, Tokens
from mace_pl.methods.closed_form import Preservation, refine


class MaceRefinement(ClosedForm):
    """Stage 1 of MACE alone: T = (G + S)(F + S)⁻¹; nothing is trained and no image is needed.

    Args:
        tokens: ``coexisting`` maps the tokens beside the target to those of the anchor's prompt (the paper), ``all``
            maps all tokens, position by position.
    """

    def __init__(self, tokens: Literal["coexisting", "all"] = "coexisting") -> None:
        self.tokens: Tokens = tokens

    def solve(self, F: Tensor, G: Tensor, keep: Preservation, layers: Mapping[str, Tensor]) -> Tensor:
        """See :func:`mace_pl.methods.closed_form.refine`."""
        return refine(F, G, keep)


class Mace(ClosedForm):
    """All three stages: a refinement, a LoRA per concept on top of it, and the closed-form fusion.

    Args:
        refinement: the closed form of stage 1; MACE's own when None.
    """

    trains = True

    def __init__(self, refinement: ClosedForm | None = None) -> None:
        self.refinement = refinement or MaceRefinement()
        self.tokens = self.refinement.tokens

    def solve(self, F: Tensor, G: Tensor, keep: Preservation, layers: Mapping[str, Tensor]) -> Tensor:
        """T of the refinement."""
        return self.refinement.solve(F, G, keep, layers)
