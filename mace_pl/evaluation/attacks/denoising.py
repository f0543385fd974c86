"""Denoising by DDIM in which an attack may change the network, the noise and the start.

Legend: N images side by side, of the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from mace_pl.evaluation.attacks.trial import Trial
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline


def first_noise(trial: Trial, count: int = 1) -> Tensor:
    """[N, C, h, w]: the same noise for each, by the trial's seed, as a pipeline's first."""
    noise = torch.randn(trial.latents.shape, generator=torch.Generator().manual_seed(trial.seed))
    return noise.to(trial.latents).expand(count, -1, -1, -1)


@torch.no_grad()
def denoised(
    trial: Trial,
    latents: Tensor | None = None,
    by_original: int = 0,
    skipped: int = 0,
    noise: Sequence[float] | None = None,
) -> list[Image.Image]:
    """Images of the target's plain prompt by the edited model.

    A step is x_{t−1} = √ᾱ_{t−1} x̂_0 + √(1 − ᾱ_{t−1} − σ_t²) ε + η σ_t ε', with σ_t that of DDPM where ``noise`` is
    given, zero else. An η above 1 is more noise than the sampler takes off again: the probe of arXiv 2505.17013.

    Args:
        trial: models, prompt and seed.
        latents: [N, C, h, w] where it starts, under the noise of the first step that is not skipped; pure noise when
            None.
        by_original: steps that the original does, the first ones.
        skipped: first steps that are left out.
        noise: η of each image; no noise is added when None.
    """
    scheduler = DDIMScheduler.from_config(trial.edited.scheduler.config)
    scheduler.set_timesteps(trial.steps, device=trial.latents.device)
    count = len(noise) if noise else 1
    if latents is None:
        latents = first_noise(trial, count) * scheduler.init_noise_sigma
    scale = torch.tensor(noise or [0.0]).view(-1, 1, 1, 1)
    models = {name: _prompted(trial, getattr(trial, name)) for name in ("original", "edited")}
    for number, t in enumerate(scheduler.timesteps[skipped:]):
        guided = models["original" if number < by_original else "edited"]
        drawn = torch.randn(trial.latents.shape, generator=trial.generator)
        extra = {"eta": 1.0, "variance_noise": (scale * drawn).to(latents)} if noise else {}
        latents = scheduler.step(guided(latents, t), t, latents, **extra).prev_sample
    return decoded(trial.edited, latents)


def _prompted(trial: Trial, pipeline: Pipeline) -> Any:
    """A function from latents and timestep to what the network predicts, guided away from the empty prompt."""
    backbone = backbone_of(pipeline)
    alone = trial.guidance <= 1 or backbone.network.config.get("time_cond_proj_dim") is not None
    hidden, pooled = backbone.encode([trial.prompt] if alone else ["", trial.prompt])

    def predicted(latents: Tensor, t: Tensor) -> Tensor:
        rows, count = len(hidden), len(latents)
        both = latents.repeat(rows, 1, 1, 1)
        said = None if pooled is None else pooled.repeat_interleave(count, dim=0)
        extra = backbone.inputs(said, rows * count, trial.guidance)
        found = backbone.predict(both, t.expand(rows * count), hidden.repeat_interleave(count, dim=0), extra)
        if alone:
            return found
        against, asked = found.chunk(2)
        return against + trial.guidance * (asked - against)

    return predicted


def decoded(pipeline: Pipeline, latents: Tensor) -> list[Image.Image]:
    """The images that latents [N, C, h, w] stand for."""
    vae = backbone_of(pipeline).autoencoder
    config = vae.config
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (latents.new_tensor(config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
        latents = latents * std / config["scaling_factor"] + mean
    else:
        latents = latents / config["scaling_factor"] + (config.get("shift_factor") or 0)
    images: list[Image.Image] = pipeline.image_processor.postprocess(vae.decode(latents.to(vae.dtype)).sample)
    return images
