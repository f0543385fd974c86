"""SPEED (Li et al., ICLR 2026, arXiv 2503.07392): an edit in the null space of the names that it would harm."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, above_zero
from mace_pl.methods.closed_form import metric, plain_edit
from mace_pl.methods.edit import Edit
from mace_pl.methods.retained import centres, retained_gram
from mace_pl.models.cross_attention import is_value


class SPEED(ClosedForm):
    """T = I + (G − F) N Q M with M = (F N + I)⁻¹ and Q = I − M C (Cᵀ N M C)⁻¹ Cᵀ N; F, G and R are means.

    N projects on the eigenvectors of R with eigenvalues below a threshold; R is the mean over names that the plain edit
    (G − F)(F + I)⁻¹ moves more than the average, and noisy copies of them. C, the start token and centres of the empty
    prompt's other tokens, is preserved exactly. Only values are edited. Names come from ``model.domain_names``; the
    weights of ``model.refine`` are not used. The published filter and noise look at each W_l: ‖W_l (T_e − I) e_r‖, and
    noise where W_l is smallest; that is ``form: layers``. ``form: shared`` is ours: ‖(T_e − I) e_r‖, noise where A = Σ
    W_lᵀ W_l is smallest, one T. Number and size of the copies, and start and seed of k-means and noise are ours.

    Args:
        form: ``shared`` or ``layers``.
        threshold: of eigenvalues of R (published: 0.1).
        tokens: ``last`` of the bare name, or ``bare``, all of its tokens (published for nudity).
        centres: of the empty prompt (published: 3).
        copies: noisy copies of a name.
    """

    source = "SPEED (Li et al., ICLR 2026)"
    reads_names = True

    def __init__(
        self,
        form: Literal["shared", "layers"] = "shared",
        threshold: float = 0.1,
        tokens: Literal["last", "bare"] = "last",
        centres: int = 3,
        copies: int = 10,
    ) -> None:
        if min(centres, copies) < 0:
            raise UserError(f"model.method.centres={centres} and copies={copies} must be at least 0.")
        self.form, self.tokens, self.centres, self.copies = form, tokens, centres, copies
        self.threshold = above_zero("threshold", threshold, "0.1")

    @property
    def one_matrix(self) -> bool:
        """Of the shared form."""
        return self.form == "shared"

    def solve(self, sums: Sums) -> Edit:
        """T of the values, or factors of the values of each layer."""
        F, G, one = sums.F / sums.pairs, sums.G / sums.pairs, torch.eye(len(sums.F), dtype=torch.float64)
        assert sums.blank is not None
        C = torch.cat([sums.blank[:1], centres(sums.blank[1:], self.centres)]).double().T
        copied = (sums.names, plain_edit(F, G) - one, self.copies)
        if self.form == "shared":
            R = retained_gram(*copied, size_DD=one, noise_DD=sums.metric)
            return Edit(one + (G - F) @ self.update(F, R, C), values_only=True)
        U, s, Vt = torch.linalg.svd(G - F)
        rank, factors = int((s > 1e-12 * s[0]).sum()), {}  # below is rounding
        for name, W in sums.layers.items():
            if is_value(name):
                R = retained_gram(*copied, size_DD=metric([W]), noise_DD=metric([W]))
                factors[name] = (s[:rank, None] * Vt[:rank] @ self.update(F, R, C), W.cpu().double() @ U[:, :rank])
        return Edit(one, factors, values_only=True)

    def update(self, F: Tensor, R: Tensor, C: Tensor) -> Tensor:
        """N Q M [D, D], in a basis V of the null space: N = V Vᵀ, N M = V K⁻¹ Vᵀ with K = Vᵀ F V + I."""
        values, V = torch.linalg.eigh(R)
        V = V[:, values < self.threshold]
        if not V.shape[1]:
            raise UserError(f"model.method.threshold={self.threshold}: no direction is left to edit. Raise it.")
        factor = torch.linalg.cholesky(V.T @ F @ V + torch.eye(V.shape[1], dtype=torch.float64))
        left, fixed = torch.cholesky_inverse(factor), V.T @ C
        KC = left @ fixed  # C may lie in what is retained, in part or as a whole: then there is no inverse below
        found: Tensor = V @ (left - KC @ torch.linalg.pinv(fixed.T @ KC, rtol=1e-10, hermitian=True) @ KC.T) @ V.T
        return found
