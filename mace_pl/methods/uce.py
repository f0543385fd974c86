"""Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Tokens
from mace_pl.methods.closed_form import Preservation, refine


class UCE(ClosedForm):
    """Equation 7 of the paper for all layers at once; nothing is trained and no image is needed.

    W' = (Σ a W c* cᵀ + W S)(Σ a c cᵀ + S)⁻¹, so T = (a G + S)(a F + S)⁻¹ with S = b R + λ I. c and c* are the last
    tokens of the bare names of target and anchor. λ is ``model.refine.identity`` (published: 0.5), b is
    ``model.refine.domain`` (published: 1) on R = Σ e_r e_rᵀ over what ``model.domain`` and ``model.domain_names`` hold.
    The published R sums last tokens of bare names, ours all tokens of a few prompts of each name. Published anchors:
    the empty text for objects, which is no name here, so choose a general one; "art" for styles.

    Args:
        strength: a, the weight of the targets (published: 1).
    """

    tokens: Tokens = "last"

    def __init__(self, strength: float = 1.0) -> None:
        if strength <= 0:
            raise UserError(f"model.method.strength={strength} must be above 0 (published: 1).")
        self.strength = strength

    def solve(self, F: Tensor, G: Tensor, keep: Preservation, layers: Mapping[str, Tensor]) -> Tensor:
        """T = I + a (G − F)(a F + S)⁻¹."""
        return refine(self.strength * F, self.strength * G, keep)
