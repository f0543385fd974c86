"""What presets calculate with: memory of weights, of a training step and of an image, at the shapes of each family.

Run it on a GPU as ``python benchmarks/preset_memory.py --device cuda``: a minute. It prints what
``mace_pl/commands/presets.yaml`` holds: what the allocator takes of the card, workspaces of kernels with it. Without a
GPU no tensor has values, and bytes are those that tensors take at once: less, for no kernel runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
import yaml
from common import quiet
from jsonargparse import auto_cli
from rehearsal import build
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mace_pl.models.cross_attention import attention_losses
from mace_pl.training.memory import LiveBytes

GIB = 2**30
TOKENS = 77
IMAGES = 4  # at once, where the UNet's part of one is measured
#: of the presets, by the name that the rehearsal has for each
FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


def weight_bytes(parts: dict[str, Any]) -> int:
    """Of all networks, in float32."""
    return sum(p.numel() * p.element_size() for part in parts.values() for p in part.parameters())


def norms(probabilities: Tensor) -> Tensor:
    """[N] from probabilities [N, H, Q, T]."""
    found: Tensor = torch.linalg.vector_norm(probabilities.flatten(1), dim=1)
    return found


class Reserved:
    """What the allocator takes of a GPU within the context, beside what it had: ``peak`` bytes."""

    peak = 0

    def __enter__(self) -> Reserved:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_reserved()
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        self.peak = torch.cuda.max_memory_reserved() - self.before


def measuring() -> LiveBytes | Reserved:
    """What sees the bytes of torch's default device."""
    return Reserved() if torch.get_default_device().type == "cuda" else LiveBytes()


def inputs(unet: Any, count: int) -> tuple[Tensor, Tensor, dict[str, Any] | None]:
    """Latents, text and further conditions of ``count`` samples."""
    settings = unet.config
    latents = torch.zeros(count, settings.in_channels, settings.sample_size, settings.sample_size)
    text = torch.zeros(count, TOKENS, settings.cross_attention_dim)
    if not settings.addition_embed_type:
        return latents, text, None
    width = settings.projection_class_embeddings_input_dim - 6 * settings.addition_time_embed_dim
    pooled = {"text_embeds": torch.zeros(count, width), "time_ids": torch.zeros(count, 6)}
    return latents, text, {"added_cond_kwargs": pooled}


def step_bytes(unet: Any, checkpointing: bool, mixed: bool) -> int:
    """The peak of one concept's step, one image: forward to the last cross-attention, and back."""
    unet.requires_grad_(False)
    latents, text, extra = inputs(unet, 1)
    latents.requires_grad_()
    with measuring() as seen:
        with torch.autocast(latents.device.type, torch.bfloat16) if mixed else nullcontext():
            losses = attention_losses(unet, latents, torch.ones(1).long(), text, norms, extra, checkpointing)
        losses.sum().backward()
    return seen.peak


@torch.no_grad()
def pass_bytes(unet: Any) -> int:
    """The peak of the UNet for an image, with classifier-free guidance: its part of four at once."""
    latents, text, extra = inputs(unet, 2 * IMAGES)
    with measuring() as seen:
        unet(latents, torch.ones(2 * IMAGES).long(), text, **(extra or {}))
    return seen.peak // IMAGES


@torch.no_grad()
def decoded_bytes(vae: Any, side: int) -> int:
    """The peak of decoding one image of latents of ``side``; those that are generated at once are decoded in turn."""
    latents = torch.zeros(1, vae.config.latent_channels, side, side)
    with measuring() as seen:
        vae.decode(latents)
    return seen.peak


def entry(family: str) -> dict[str, Any]:
    """A family's entry of the table, in GiB."""
    parts = build(FAMILIES[family], False, None)
    unet, vae = parts["unet"].eval(), parts["vae"].eval()
    side = unet.config.sample_size
    kinds = {"plain": (False, False), "checkpointing": (True, False), "both": (True, True)}
    steps = {name: gib(step_bytes(unet, *kind)) for name, kind in kinds.items()}
    image = {"pass": gib(pass_bytes(unet)), "decode": gib(decoded_bytes(vae, side))}
    return {"side": side, "weights": gib(weight_bytes(parts)), "step": steps, "image": image}


def gib(size: int) -> float:
    """To two digits."""
    return round(size / GIB, 2)


def main(
    families: list[str] = list(FAMILIES),  # noqa: B006 - read only; jsonargparse shows it
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Print the table.

    Args:
        families: which of sd15, sd21, sdxl.
        device: ``cuda`` to measure, ``cpu`` to calculate.
    """
    quiet()
    with torch.device(device), FakeTensorMode() if device == "cpu" else nullcontext():
        table = {family: entry(family) for family in families}
    print(yaml.safe_dump(table, sort_keys=False))


if __name__ == "__main__":
    auto_cli(main)
