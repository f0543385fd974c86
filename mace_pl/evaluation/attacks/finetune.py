"""An attack on the weights: how many steps of fine-tuning on a few images until the target is back."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from mace_pl.evaluation.attacks.trial import Trial, generate_from
from mace_pl.evaluation.token_attack import diffusion_loss
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import image_latents
from mace_pl.models.sampling import generate
from mace_pl.training.frozen_layers import frozen_layers


def finetune(trial: Trial) -> list[Image.Image]:
    """An image of the plain prompt after each number of steps of fine-tuning the edited model on images of the target.

    All queries, keys, values and outputs of attention learn, by Adam and the diffusion loss of the plain prompt: the
    weights that edits and hardenings change. All images are in every step, each with a timestep and noise of its own.
    The weights are as they were when this ends.
    """
    backbone, tries = backbone_of(trial.edited), trial.strengths
    latents, text = images_of(trial), backbone.encode([trial.prompt])
    before = backbone.weights_of(backbone.attention_layers("all"))
    weights = [backbone.network.get_submodule(name).weight for name in before]
    optimizer = torch.optim.Adam(weights, lr=tries.finetune_lr)
    candidates = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for step in range(1, tries.finetune[-1] + 1):
            noise = torch.randn(latents.shape, generator=trial.generator).to(latents)
            t = torch.randint(backbone.timesteps, (len(latents),), generator=trial.generator).to(latents.device)
            optimizer.zero_grad()
            with torch.enable_grad(), frozen_layers(backbone.network):
                diffusion_loss(trial.edited, latents, text, noise, t).backward()
            optimizer.step()
            if trial.on_step is not None:
                trial.on_step()
            candidates += generate_from(trial, text) if step in tries.finetune else []
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
        backbone.set_key_values(before)
    return candidates


def images_of(trial: Trial) -> Tensor:
    """[I, C, h, w]: the trial's image of the target, and others by the original with seeds that the trial draws."""
    more = trial.strengths.finetune_images - 1
    if not more:
        return trial.latents
    seeds = torch.randint(2**31, (more,), generator=trial.generator).tolist()
    others = generate(trial.original, [trial.prompt] * more, seeds, trial.steps, trial.guidance)
    return torch.cat([trial.latents, *(image_latents(trial.edited, [one]) for one in others)])
