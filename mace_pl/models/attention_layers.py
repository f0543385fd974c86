"""All projections of a UNet's attention, of self- and cross-attention, by qualified name."""

from __future__ import annotations

from typing import Literal

from diffusers.models.attention_processor import Attention
from torch import nn

#: which attention: all of it, that which reads the text, or that within the image
Which = Literal["all", "cross", "self"]
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def projection_names(unet: nn.Module, which: Which) -> list[str]:
    """Names of the query, key, value and output projections, in the order of the module tree.

    Args:
        unet: the UNet2DConditionModel.
        which: of which attention.
    """
    kinds = {"all": ("attn1", "attn2"), "cross": ("attn2",), "self": ("attn1",)}[which]
    layers = [n for n, m in unet.named_modules() if isinstance(m, Attention) and n.split(".")[-1] in kinds]
    return [f"{layer}.{part}" for layer in layers for part in PROJECTIONS]


def reads_image_only(name: str) -> bool:
    """Whether a projection of :func:`projection_names` sees no text: any but the keys and values of cross-attention."""
    return ".attn1." in name or name.endswith((".to_q", ".to_out.0"))
