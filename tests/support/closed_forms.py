"""Layers of different widths and tokens of random numbers, and the sums that a closed form is solved from."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mace_pl.methods.base import Sums
from mace_pl.methods.closed_form import Preservation, gram
from support.seeds import seeded

D = 12
IDENTITY = torch.eye(D, dtype=torch.float64)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seeded(seed)))


def layers() -> dict[str, Tensor]:
    """Keys and values, narrower and wider than the text."""
    widths = {"a.to_k": 5, "a.to_v": 5, "b.to_k": 20, "b.to_v": 20, "c.to_v": 12}
    return {name: rand(width, D, seed=30 + i) for i, (name, width) in enumerate(widths.items())}


@dataclass(frozen=True)
class Tokens:
    """Of three targets and their anchors, seven names, and the empty prompt."""

    targets: Tensor = field(default_factory=lambda: rand(3, D, seed=1))
    anchors: Tensor = field(default_factory=lambda: rand(3, D, seed=2))
    names: Tensor = field(default_factory=lambda: rand(7, D, seed=3))
    blank: Tensor = field(default_factory=lambda: rand(9, D, seed=4))

    def sums(self, identity: float = 0.0, domain: float = 1.0) -> Sums:
        keep = Preservation(identity, domain=gram(self.names, self.names), domain_weight=domain)
        F, G = gram(self.targets, self.targets), gram(self.anchors, self.targets)
        return Sums(F, G, keep, layers(), float(len(self.targets)), self.names, self.blank)


def outer(tokens: Tensor) -> Tensor:
    """Σ e eᵀ token by token."""
    total = torch.zeros(D, D, dtype=torch.float64)
    for e in tokens:
        total += torch.outer(e, e)
    return total


def minimiser(pairs: list[tuple[float, Tensor, Tensor]], width: int) -> Tensor:
    """argmin over X [width, D] of Σ weight·‖X e − y‖² of (weight, e, y), from its normal equations, token by token."""
    left, right = torch.zeros(width, D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    for weight, e, y in pairs:
        left += weight * torch.outer(y, e)
        right += weight * torch.outer(e, e)
    return left @ torch.linalg.inv(right)
