"""Strong augmentation of a batch of images, in torch: what makes a CLIP score soft, noisy, shifted images right."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """One number between ``low`` and ``high`` for each of the N images, shaped [N, 1, 1, 1]."""
    numbers = torch.rand(len(images), 1, 1, 1, generator=generator)
    return low + (high - low) * numbers.to(images)


def normal(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Normal noise [N, 3, height, width]."""
    return torch.randn(len(images), images.shape[1], height, width, generator=generator).to(images)


def sometimes(changed: Tensor, images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Takes ``changed`` for a random ``share`` of the batch and ``images`` for the rest."""
    chosen = uniform(images, 0.0, 1.0, generator) < share
    return torch.where(chosen, changed, images)


def warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotation up to 15 degrees, scale 0.85 to 1.2, shift up to a tenth of the side; borders are continued."""
    angle = uniform(images, -math.pi / 12, math.pi / 12, generator).flatten()
    scale = uniform(images, 0.85, 1.2, generator).flatten()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    x, y = (uniform(images, -0.2, 0.2, generator).flatten() for _ in range(2))
    theta = torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def bend(images: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth displacements of a twentieth of the side or so, as in what a small diffusion model generates."""
    shifts = torch.randn(len(images), 2, 5, 5, generator=generator).to(images) * 0.1
    shifts = F.interpolate(shifts, size=images.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    straight = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(len(images), 2, 3)
    grid = F.affine_grid(straight, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid + shifts, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a kernel of 7 x 7."""
    offsets = torch.arange(-3, 4, device=images.device, dtype=images.dtype)
    weights = (-(offsets**2) / (2 * sigma**2)).exp()
    weights = (weights / weights.sum()).repeat(images.shape[1], 1)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, weights[:, None, :, None], groups=images.shape[1])
    return F.conv2d(rows, weights[:, None, None, :], groups=images.shape[1])


def soften(images: Tensor, factor: int) -> Tensor:
    """Down by ``factor`` and up again, as a weak autoencoder would."""
    small = F.interpolate(images, scale_factor=1 / factor, mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def smooth_noise(images: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Noise that is constant over some pixels, like the blotches of a latent model's images."""
    noise = normal(images, cells, cells, generator)
    return F.interpolate(noise, size=images.shape[-2:], mode="bilinear", align_corners=False)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, 3, H, W] in [-1, 1], each changed by its own random choice of everything above."""
    images = sometimes(images.flip(-1), images, 0.5, generator)
    images = sometimes(warp(images, generator), images, 0.7, generator)
    images = sometimes(bend(images, generator), images, 0.5, generator)
    sigma = float(uniform(images[:1], 0.5, 2.0, generator))
    images = sometimes(blur(images, sigma), images, 0.35, generator)
    images = sometimes(soften(images, 2), images, 0.3, generator)
    images = sometimes(soften(images, 4), images, 0.1, generator)
    contrast, shift = uniform(images, 0.6, 1.3, generator), uniform(images, -0.25, 0.25, generator)
    images = sometimes(images * contrast + shift, images, 0.6, generator)
    tint = normal(images, 1, 1, generator) * 0.1
    images = sometimes(images + tint, images, 0.4, generator)
    blotches = smooth_noise(images, max(1, images.shape[-1] // 6), generator) * uniform(images, 0.0, 0.35, generator)
    images = sometimes(images + blotches, images, 0.5, generator)
    noise = normal(images, images.shape[-2], images.shape[-1], generator)
    images = sometimes(images + noise * uniform(images, 0.0, 0.25, generator), images, 0.5, generator)
    return images.clamp(-1.0, 1.0)
