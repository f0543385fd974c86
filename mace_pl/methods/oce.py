"""OCE (ICML 2026, arXiv 2605.28902): turn the values of each layer by a rotation of their output."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, Tokens, above_zero
from mace_pl.methods.edit import Edit
from mace_pl.models.cross_attention import is_value

RANK = 1e-12  # singular values of sums below this share of the largest are rounding of float32 embeddings, squared


class OCE(ClosedForm):
    """W⁺ = U Vᵀ W with the SVD M = U s Vᵀ of M = −a R (I − R_*) + W S Wᵀ, for the values of each layer.

    R and R_* project on the spans of {W e_f} and of {W e_g}; S = b P + c Σ e_n e_nᵀ + λ I is stage 1's S: b is
    ``model.refine.prior`` (published: 70), c ``model.refine.domain`` (published: 2) on the last tokens of
    ``model.domain_names``, λ ``model.refine.identity`` (published: 10). Our source, a summary of the paper, does not
    say whether P is a sum or a mean; here it is what ``model.prior`` holds. The paper's unlicensed code was not read.

    It is no T: each layer has a matrix of its own, of full rank, so ``edit.safetensors`` is larger than the refined
    weights, and a LoRA of it needs a high rank. A rotation keeps the size of every value, so nothing is erased to a
    degree.

    Args:
        strength: a (published: 800).
    """

    source = "OCE (arXiv 2605.28902, ICML 2026)"
    tokens: Tokens = "last"
    takes_strength = False

    def __init__(self, strength: float = 800.0) -> None:
        self.strength = above_zero("strength", strength, "800")

    @property
    def one_matrix(self) -> bool:
        """A rotation per layer is none."""
        return False

    def solve(self, sums: Sums) -> Edit:
        """ΔW = (U Vᵀ − I) W by layer, as factors.

        Raises:
            UserError: S is singular, so that M is.
        """
        identity = torch.eye(len(sums.F), dtype=torch.float64)
        S = sums.preservation.statistics(len(identity)) + sums.preservation.identity * identity
        targets, anchors = span(sums.F), span(sums.G)
        factors = {}
        for name, layer in sums.layers.items():
            if is_value(name):
                W = layer.cpu().double()
                delta = self.turned(W, targets, anchors, S, sums.preservation.describe()) - W
                one = torch.eye(len(delta), dtype=torch.float64)
                factors[name] = (delta, one) if len(one) < len(identity) else (identity, delta)
        return Edit(identity, factors, values_only=True)

    def turned(self, W: Tensor, targets: Tensor, anchors: Tensor, S: Tensor, terms: str) -> Tensor:
        """W⁺ [O, D] of one layer, calculated in the range of W, outside of which M is zero."""
        Q, inner = torch.linalg.qr(W)
        R, R_star = (basis @ basis.T for basis in (span(inner @ targets), span(inner @ anchors)))
        U, s, Vt = torch.linalg.svd(inner @ S @ inner.T - self.strength * (R - R @ R_star))
        if s[-1] <= len(s) * torch.finfo(s.dtype).eps * s[0]:
            raise UserError(
                f"refine: the system is singular ({terms}). Raise --model.refine.identity above 0 (published: 10)."
            )
        found: Tensor = Q @ (U @ (Vt @ inner))
        return found


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis [D, r] of the span of columns [D, K]."""
    U, s, _ = torch.linalg.svd(vectors, full_matrices=False)
    basis: Tensor = U[:, s > RANK * s[0]] if len(s) and s[0] > 0 else U[:, :0]
    return basis
