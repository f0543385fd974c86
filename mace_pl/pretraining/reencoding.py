"""Images of training as they come out of an autoencoder: what a latent diffusion model generates comes out of one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from lightning import LightningModule
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.pretraining.augment import uniform
from mace_pl.training.progress import image_progress
from mace_pl.training.trainer import shows_progress

LATENT_NOISE = 0.4  # most noise on the latents that are decoded, relative to the latents' own deviation


def check_autoencoder(folder: str | None) -> None:
    """Refuse a folder that holds no AutoencoderKL.

    Raises:
        UserError: it has no config.json.
    """
    if folder is not None and not (resolve(folder) / "config.json").is_file():
        raise UserError(f"autoencoder={folder} has no config.json. Give the folder of an AutoencoderKL.")


@torch.no_grad()
def reencode(images: Tensor, folder: str, module: LightningModule, seed: int) -> Tensor:
    """Every image encoded and decoded, with some noise on the latents: a diffusion model's are not perfect.

    Args:
        images: [N, 3, H, W], uint8.
        folder: of the AutoencoderKL.
        module: where it runs, and whose Trainer shows the progress.
        seed: of the noise.

    Returns:
        [N, 3, H, W], uint8.
    """
    vae: Any = AutoencoderKL.from_pretrained(resolve(folder), torch_dtype=torch.float32)
    vae = vae.to(module.device).eval()
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with image_progress(shows_progress(module.trainer), "through the autoencoder", len(images)) as advance:
        for part in images.split(64):
            latents = vae.encode(part.to(module.device).float() / 127.5 - 1).latent_dist.mode()
            noise = torch.randn(latents.shape, generator=generator).to(latents) / vae.config.scaling_factor
            noise = noise * uniform(latents, 0.0, LATENT_NOISE, generator)
            seen = vae.decode(latents + noise).sample
            parts.append(((seen.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8))
            advance(len(part))
    return torch.cat(parts)
