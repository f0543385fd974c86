"""What SPEED retains: names that an edit would harm, noisy copies of them, centres of the empty prompt's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mace_pl.methods.closed_form import sizes


def retained_gram(names_ND: Tensor | None, change_DD: Tensor, copies: int, size_DD: Tensor, noise_DD: Tensor) -> Tensor:
    """R [D, D], the mean of e eᵀ over the names that an edit moves at least as much as the average, and noisy copies.

    Args:
        names_ND: their tokens; without any R is zero.
        change_DD: T_e − I of the edit.
        copies: of each name, with seeded noise of standard deviation 1.
        size_DD: the metric of ‖(T_e − I) e‖.
        noise_DD: a metric; the noise lies where it is smallest, so that it changes least of what the layers see.
    """
    if names_ND is None:
        return torch.zeros_like(change_DD)
    moved = sizes(names_ND @ change_DD.T, size_DD)
    own = names_ND[moved >= moved.mean()]
    direction = torch.linalg.eigh(noise_DD)[1][:, :1]
    samples = torch.randn(copies, len(own), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([own[None], own + samples * direction.T]).reshape(-1, len(change_DD))
    return whole.T @ whole / len(whole)


def centres(tokens_ND: Tensor, k: int, rounds: int = 100) -> Tensor:
    """K centres [min(k, N), D] by Lloyd's algorithm, the same in every run.

    It starts at the first token, then at the one that is farthest from those before.

    Args:
        tokens_ND: the points.
        k: how many.
        rounds: at most.
    """
    tokens = tokens_ND.double()
    found = tokens[: min(k, 1)]
    while len(found) < min(k, len(tokens)):
        found = torch.cat([found, tokens[torch.cdist(tokens, found).min(1).values.argmax()][None]])
    for _ in range(rounds if len(found) else 0):
        nearest = torch.cdist(tokens, found).argmin(1)
        moved = [tokens[nearest == i].mean(0) if (nearest == i).any() else found[i] for i in range(len(found))]
        if torch.equal(torch.stack(moved), found):
            break
        found = torch.stack(moved)
    return found
