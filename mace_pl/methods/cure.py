"""CURE (NeurIPS 2025, arXiv 2505.12677): remove what is the target's and no one else's, without an anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, Tokens
from mace_pl.methods.edit import Edit


class CURE(ClosedForm):
    """T = I − (P_f − P_f P_r) with softened projectors P_f on the targets' tokens and P_r on those that are retained.

    P = V f(ρ) Vᵀ from the eigenpairs (σ_i², v_i) of F or of R, with ρ_i = σ_i² / Σ σ² and f(ρ) = αρ / ((α − 1)ρ + 1). R
    is λ_p P + λ_d D of ``model.prior``, ``model.domain`` and ``model.domain_names`` with their weights in
    ``model.refine``; only shares of its eigenvalues count, ``model.refine.identity`` is not used. There is no anchor:
    write ``anchor: ''``. All tokens of the bare name are summed here; the source that we have, a summary of the paper,
    says "all tokens" and not of which prompts. Keys and values are edited.

    Args:
        alpha: α, from 1 (f is ρ itself) towards a hard projector at large ones (published: 2 to 5; the default is 2).
    """

    source = "CURE (arXiv 2505.12677, NeurIPS 2025)"
    tokens: Tokens = "bare"
    anchored = False
    takes_strength = False

    def __init__(self, alpha: float = 2.0) -> None:
        if not 1 <= alpha < float("inf"):
            raise UserError(f"model.method.alpha={alpha} must be at least 1 (published: 2 to 5), and finite.")
        self.alpha = alpha

    def projector(self, gram: Tensor) -> Tensor:
        """P [D, D] of a Gram matrix; zero where the matrix is."""
        values, V = torch.linalg.eigh(gram)
        values = values.clamp_min(0)
        shares = values / values.sum() if values.sum() > 0 else values
        P: Tensor = (V * (self.alpha * shares / ((self.alpha - 1) * shares + 1))) @ V.T
        return P

    def solve(self, sums: Sums) -> Edit:
        """T [D, D]; G is not looked at."""
        P_f = self.projector(sums.F)
        P_r = self.projector(sums.preservation.statistics(len(sums.F)))
        return Edit(torch.eye(len(P_f), dtype=torch.float64) - (P_f - P_f @ P_r))
