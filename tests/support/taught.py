"""A toy SDXL that was taught two names by their pooled embeddings alone: what attention reads says nothing."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from mace_pl.models.backbone import backbone_of
from support.families import family
from support.seeds import seeded

NAMES = ("ship", "dog")
TEMPLATES = ("a photo of a {}", "a drawing of a {}", "a {}", "{}")
STEPS = 100


def latents() -> Tensor:
    """One for each name, [2, 4, 8, 8]: a colour each."""
    colours = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    return colours[:, :, None, None].expand(2, 4, 8, 8).contiguous()


def _small(like: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet of SDXL with two levels, of which one reads the prompt by attention."""
    two = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (8, 16)}
    two |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 1)}
    return UNet2DConditionModel.from_config(dict(like.config) | two | {"layers_per_block": 1, "attention_head_dim": 4})


def taught(toy: Path, folder: Path) -> Path:
    """Saves the pipeline.

    A step shows the image of the pooled embedding's name under the text of either name, so the text is no help.
    """
    pipeline = family("sdxl", toy)
    schedule = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="sample", clip_sample=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(2))
        pipeline.register_modules(scheduler=schedule, unet=_small(pipeline.unet))
    backbone, images = backbone_of(pipeline), latents()
    prompts = [template.replace("{}", name) for name in NAMES for template in TEMPLATES]
    text, pooled = (part.detach() for part in backbone.encode(prompts))
    generator = torch.Generator().manual_seed(seeded(0))
    optimizer = torch.optim.Adam(backbone.network.parameters(), lr=1e-2)
    for _ in range(STEPS):
        shown, read = torch.arange(len(prompts)), torch.randperm(len(prompts), generator=generator)
        clean = images[shown // len(TEMPLATES)]
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(backbone.timesteps, (len(shown),), generator=generator)
        extra = backbone.inputs(pooled[shown], len(shown), 1.0)
        found = backbone.predict(backbone.noised(clean, noise, t), t, text[read], extra)
        loss = (found - backbone.aim(clean, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipeline.save_pretrained(folder)
    return folder


@torch.no_grad()
def trained_images(pipeline: StableDiffusionXLPipeline) -> Tensor:
    """The images of both names, [2, 3, 16, 16] in [0, 1]."""
    decoded = pipeline.vae.decode(latents() / pipeline.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def generated(pipeline: StableDiffusionXLPipeline, prompts: list[str], seed: int = 0) -> Tensor:
    """What a prompt gives, [N, 3, 16, 16] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for _ in prompts]
    size = {"height": 16, "width": 16, "original_size": (16, 16), "target_size": (16, 16)}
    return pipeline(
        prompts, num_inference_steps=4, guidance_scale=1.0, generator=seeds, output_type="pt", **size
    ).images
