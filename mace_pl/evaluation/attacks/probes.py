"""Attacks that need no other text than the plain prompt: more noise, an image begun by the original, an image."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from PIL import Image

from mace_pl.evaluation.attacks.denoising import denoised, first_noise
from mace_pl.evaluation.attacks.trial import Trial
from mace_pl.models.backbone import backbone_of


def noise(trial: Trial) -> list[Image.Image]:
    """More noise in every step than the sampler takes off, a candidate for each multiple (arXiv 2505.17013)."""
    return denoised(trial, noise=trial.strengths.noise)


def completion(trial: Trial) -> list[Image.Image]:
    """The original does the first steps, the edited model the rest; a candidate for each share."""
    shares = trial.strengths.completion
    return [image for share in shares for image in denoised(trial, by_original=round(share * trial.steps))]


def image(trial: Trial) -> list[Image.Image]:
    """An image of the target by the original, noised part of the way and denoised by the edited model."""
    scheduler = DDIMScheduler.from_config(trial.edited.scheduler.config)
    scheduler.set_timesteps(trial.steps)
    skipped = min(trial.steps - 1, round((1 - trial.strengths.image) * trial.steps))
    t = scheduler.timesteps[skipped : skipped + 1].to(torch.long)
    start = backbone_of(trial.edited).noised(trial.latents, first_noise(trial), t)
    return denoised(trial, start, skipped=skipped)
