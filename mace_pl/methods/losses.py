"""Stage 2's loss and the density over timesteps that focuses on the concept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_attention_norm(probabilities: Tensor, mask: Tensor, positions: Tensor, squared: bool = False) -> Tensor:
    """‖A[heads, pixels inside the mask, attended tokens]‖_F of one layer, per sample.

    The paper's equation squares the norm, the published experiments used the norm itself; ``squared`` picks.

    Args:
        probabilities: softmax attention [N, H, Q, T], Q = h·w pixels of the layer.
        mask: [N, 1, Hm, Wm], 1 inside the target; resized to h × w with nearest neighbours.
        positions: [N, T] bool.
        squared: square the norm.

    Returns:
        [N].
    """
    inside = resized_mask(mask, probabilities.shape[2])
    # the squares are summed over tokens, then heads, then pixels; only the probabilities stay for the backward pass
    by_pixel = torch.einsum("nhqt,nt->nq", probabilities.square(), positions.to(probabilities.dtype))
    sums = (by_pixel * inside).sum(1)
    if squared:
        return sums
    # the norm has no gradient where a layer's mask is empty
    return torch.where(sums > 0, sums, 1).sqrt() * (sums > 0)


def resized_mask(mask: Tensor, pixels: int) -> Tensor:
    """The mask [N, 1, Hm, Wm] on a layer's grid, [N, Q], nearest; the grid has the mask's aspect ratio."""
    height, width = mask.shape[-2:]
    rows = max(1, round((pixels * height / width) ** 0.5))
    resized: Tensor = F.interpolate(mask.float(), size=(rows, pixels // rows), mode="nearest")
    return torch.flatten(resized, 1)


def importance_density(steps: int, gamma: float = 0.05, t1: float = 200.0, t2: float = 400.0) -> Tensor:
    """ξ(t) ∝ σ(γ(t − t₁)) − σ(γ(t − t₂)) over t = 0 … steps − 1, [steps] in float64, summing to one."""
    t = torch.arange(steps, dtype=torch.float64)
    density = torch.sigmoid(gamma * (t - t1)) - torch.sigmoid(gamma * (t - t2))
    return density / density.sum()
