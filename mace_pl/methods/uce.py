"""Unified Concept Editing (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

from __future__ import annotations

from mace_pl.methods.base import ClosedForm, Sums, Tokens, above_zero
from mace_pl.methods.closed_form import refine
from mace_pl.methods.edit import Edit


class UCE(ClosedForm):
    """Equation 7 of the paper for all layers at once; nothing is trained and no image is needed.

    W' = (Σ a W c* cᵀ + W S)(Σ a c cᵀ + S)⁻¹, so T = (a G + S)(a F + S)⁻¹ with S = b R + λ I. c and c* are the last
    tokens of the bare names of target and anchor. λ is ``model.refine.identity`` (published: 0.5), b is
    ``model.refine.domain`` (published: 1) on R = Σ e_r e_rᵀ over the last tokens of ``model.domain_names`` and what
    ``model.domain`` holds. Keys and values are edited. Published anchors: the empty text for objects, which is no name
    here, so choose a general one; "art" for styles.

    Args:
        strength: a, the weight of the targets (published: 1).
    """

    source = "UCE (Gandikota et al., WACV 2024)"
    tokens: Tokens = "last"

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = above_zero("strength", strength, "1")

    def solve(self, sums: Sums) -> Edit:
        """T = I + a (G − F)(a F + S)⁻¹."""
        return Edit(refine(self.strength * sums.F, self.strength * sums.G, sums.preservation))
