"""The null-space edit with double projection (CVPR 2026, arXiv 2604.10032)."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, Tokens
from mace_pl.methods.edit import Edit

RANK = 1e-12  # eigenvalues of sums below this share of the largest are rounding of float32 embeddings, squared


class NullSpace(ClosedForm):
    """T = I + (G − F) N (N F N)⁺ N: targets land on their anchors, and nothing moves that lies in the preserved span.

    N = I − V_k V_kᵀ, with V_k the leading eigenvectors of the retained Gram matrix R = λ_p P + λ_d D of
    ``model.prior``, ``model.domain`` and ``model.domain_names`` with their weights in ``model.refine``; only the shares
    of its eigenvalues count, ``model.refine.identity`` is not used. Here the last token of the bare name is summed and
    keys and values are edited (the source that we have, a summary of the paper, says "bare name" and no more).

    Args:
        share: k is the smallest number of eigenvalues that make up this share of their sum. The published one is not
            known to us; 0.9 is ours.
        safe_anchors: project anchors on the preserved span first: e_g → V_k V_kᵀ e_g (the second projection; an option
            there too).
    """

    source = "the null-space edit (arXiv 2604.10032, CVPR 2026)"
    tokens: Tokens = "last"

    def __init__(self, share: float = 0.9, safe_anchors: bool = False) -> None:
        if not 0 < share <= 1:
            raise UserError(f"model.method.share={share} must be above 0 and at most 1.")
        self.share, self.safe_anchors = share, safe_anchors

    def preserved_span(self, R: Tensor) -> Tensor:
        """V_k [D, k] of a Gram matrix [D, D]; no column where nothing is retained."""
        values, V = torch.linalg.eigh(R)
        values = values.flip(0).clamp_min(0)
        before = values.cumsum(0) - values  # of the larger ones
        k = int(((before < self.share * values.sum()) & (values > RANK * values[0])).sum())  # 0 where all are 0
        found: Tensor = V.flip(1)[:, :k]
        return found

    def solve(self, sums: Sums) -> Edit:
        """T [D, D].

        Raises:
            UserError: a target lies in the preserved span, or targets are no longer independent outside of it.
        """
        F, G = sums.F, sums.G
        identity = torch.eye(len(F), dtype=torch.float64)
        V = self.preserved_span(sums.preservation.statistics(len(F)))
        N = identity - V @ V.T
        if self.safe_anchors:
            G = V @ (V.T @ G)
        own = torch.linalg.eigvalsh(F)
        values, U = torch.linalg.eigh(N @ F @ N)
        found, wanted = (int((v > RANK * own[-1]).sum()) for v in (values, own))
        if found < wanted:
            raise UserError(
                f"refine: the system is singular: outside of the {V.shape[1]} directions that are preserved, the "
                f"targets span {found} dimensions of {wanted}. Lower --model.method.share, or preserve fewer names."
            )
        U = U[:, -found:]
        return Edit(identity + (G - F) @ U @ torch.diag(1 / values[-found:]) @ U.T)
