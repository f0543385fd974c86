"""How well an edit can be asked for what it erased: a figure of the weights, for which no image is generated.

The embedding c that the edited keys and values see most like a target's e is the minimiser of
Σ_l ‖W*_l c − W_l e‖² + λ‖c‖², which is B e with B = (Σ W*ᵀW* + λI)⁻¹ Σ W*ᵀW (RECE's, arXiv 2407.12383, on the whole
edit). Where it is as large as e and leaves no residual, an embedding that means the target is within reach; whether
words lead to it is another question. Layers are summed.

Legend: D text width, O output width, N names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGE = 1e-4  # λ, of the mean diagonal of Σ W*ᵀW*


@dataclass(frozen=True)
class Seen:
    """What the keys and values of the original and of an edit make of embeddings; [D, D] each, in float64.

    Attributes:
        A: Σ WᵀW.
        N: Σ W*ᵀW*.
        X: Σ W*ᵀW.
    """

    A: Tensor
    N: Tensor
    X: Tensor

    @staticmethod
    def of(pairs: Iterable[tuple[Tensor, Tensor]]) -> Seen:
        """Of W and W* [O, D] of each layer."""
        sums: list[Tensor] = []
        for W, edited in pairs:
            old, new = W.detach().double().cpu(), edited.detach().double().cpu()
            own = [old.T @ old, new.T @ new, new.T @ old]
            sums = [total.add_(part) for total, part in zip(sums, own, strict=True)] if sums else own
        return Seen(*sums)

    @cached_property
    def best(self) -> Tensor:
        """B [D, D]."""
        ridge = RIDGE * self.N.diagonal().mean() * torch.eye(len(self.N), dtype=self.N.dtype)
        found: Tensor = torch.linalg.solve(self.N + ridge, self.X)
        return found

    def reach(self, F: Tensor) -> tuple[float, float]:
        """Size (Σ‖B e‖²/Σ‖e‖²)^½ and residual (Σ‖W* B e − W e‖²/Σ‖W e‖²)^½, over the tokens e of F = Σ e eᵀ [D, D]."""
        F, BF = F.double().cpu(), self.best @ F.double().cpu()
        size, whole = (self.best * BF).sum() / torch.trace(F), (self.A * F).sum()
        left = ((self.N @ self.best - 2 * self.X) * BF).sum() + whole
        return float(size.clamp(min=0).sqrt()), float((left / whole).clamp(min=0).sqrt())

    def moved(self, e_ND: Tensor) -> Tensor:
        """How far the edit moves what is seen of each embedding: (Σ‖(W* − W) e‖²)^½, [N]."""
        return _lengths(e_ND, self.N - self.X - self.X.T + self.A)

    def lengths(self, e_ND: Tensor) -> Tensor:
        """How large embeddings, or differences of them, are as the original sees them: (Σ‖W e‖²)^½, [N]."""
        return _lengths(e_ND, self.A)


def _lengths(e_ND: Tensor, metric: Tensor) -> Tensor:
    """(eᵀ M e)^½, [N]."""
    e = e_ND.double().cpu()
    return ((e @ metric) * e).sum(-1).clamp(min=0).sqrt()
