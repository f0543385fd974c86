"""The pooled text of SDXL: the one layer outside of attention by which its UNet reads the prompt.

The UNet adds ``add_embedding`` of [pooled embedding, image sizes] to the embedding of the timestep, so the first
columns of ``add_embedding.linear_1`` are all that sees the pooled embedding.
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import Tensor

POOLED = "add_embedding.linear_1"


def is_pooled(name: str) -> bool:
    """Whether a layer is the one that reads the pooled text."""
    return name == POOLED


def pooled_layer(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """A copy of its weight [O, E + sizes] by name, E columns of pooled text first; empty where a UNet has none."""
    if unet.config.get("addition_embed_type") != "text_time":
        return {}
    return {POOLED: unet.get_submodule(POOLED).weight.detach().clone()}
