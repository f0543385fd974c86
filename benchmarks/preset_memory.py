"""What presets calculate with: memory of weights, of a training step and of an image, at the shapes of each family.

Run it as ``python benchmarks/preset_memory.py``: some minutes, little memory and no GPU, for no tensor has values. It
prints what ``mace_pl/commands/presets.yaml`` holds. Bytes are those that tensors take at once on a GPU; what kernels
and allocators take for themselves is not seen.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import yaml
from common import quiet
from jsonargparse import auto_cli
from rehearsal import build, unet_settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel

from mace_pl.models.cross_attention import attention_losses
from mace_pl.training.memory import LiveBytes

GIB = 2**30
TOKENS = 77
#: SD 2.1 beside SD 1.x: images of 768 pixels, OpenCLIP ViT-H/14 to its last but one layer
SD21 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
TEXT21 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
FAMILIES = ("sd15", "sd21", "sdxl")


def parts_of(family: str) -> dict[str, Any]:
    """The networks of a family."""
    if family == "sd15":
        return build("sd1", False, None)
    if family == "sdxl":
        return build("sdxl", False, None)
    parts = build("sd1", False, None)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, projection_dim=512, hidden_act="gelu", **TEXT21))
    unet = type(parts["unet"])(**{**unet_settings("sd1", False), **SD21})
    return {**parts, "unet": unet, "text_encoder": text}


def weight_bytes(parts: dict[str, Any]) -> int:
    """Of all networks, in float32."""
    return sum(p.numel() * p.element_size() for part in parts.values() for p in part.parameters())


def norms(probabilities: Tensor) -> Tensor:
    """[N] from probabilities [N, H, Q, T]."""
    found: Tensor = torch.linalg.vector_norm(probabilities.flatten(1), dim=1)
    return found


def step_bytes(unet: Any, checkpointing: bool, mixed: bool) -> int:
    """The peak of one concept's step, one image: forward to the last cross-attention, and back."""
    settings = unet.config
    unet.requires_grad_(False)
    latents = torch.zeros(1, settings.in_channels, settings.sample_size, settings.sample_size).requires_grad_()
    text, extra = torch.zeros(1, TOKENS, settings.cross_attention_dim), None
    if settings.addition_embed_type:
        pooled = settings.projection_class_embeddings_input_dim - 6 * settings.addition_time_embed_dim
        extra = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}}
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            losses = attention_losses(unet, latents, torch.ones(1).long(), text, norms, extra, checkpointing)
        losses.sum().backward()
    return live.peak


def image_bytes(vae: Any, side: int) -> int:
    """The peak of decoding one image of latents of ``side``; the network's passes take less."""
    with torch.no_grad(), LiveBytes() as live:
        vae.decode(torch.zeros(1, vae.config.latent_channels, side, side))
    return live.peak


def calculated(family: str) -> dict[str, Any]:
    """A family's entry of the table, in GiB."""
    with FakeTensorMode():
        parts = parts_of(family)
        unet = parts["unet"].eval()
        side = unet.config.sample_size
        kinds = {"plain": (False, False), "checkpointing": (True, False), "both": (True, True)}
        steps = {name: gib(step_bytes(unet, *kind)) for name, kind in kinds.items()}
        weights, image = gib(weight_bytes(parts)), gib(image_bytes(parts["vae"], side))
    return {"side": side, "weights": weights, "step": steps, "image": image}


def gib(size: int) -> float:
    """To two digits."""
    return round(size / GIB, 2)


def main(families: list[str] = list(FAMILIES)) -> None:  # noqa: B006 - read only; jsonargparse shows it
    """Print the table.

    Args:
        families: which of sd15, sd21, sdxl.
    """
    quiet()
    table = {family: calculated(family) for family in families}
    print(yaml.safe_dump(table, sort_keys=False))


if __name__ == "__main__":
    auto_cli(main)
