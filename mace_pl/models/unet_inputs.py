"""Extra UNet inputs (``added_cond_kwargs``, ``timestep_cond``): pooled text and time ids of SDXL, guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mace_pl.models.pipeline import image_size
from mace_pl.models.protocols import Pipeline

TIME_IDS = 6  # of SDXL: original size, top left corner of the crop, target size


def unet_conditions(pipeline: Pipeline, pooled: Tensor | None, count: int, guidance: float) -> dict[str, Any]:
    """Keyword arguments of the UNet for ``count`` whole images of the model's own size.

    Args:
        pipeline: the pipeline with its UNet.
        pooled: pooled embeddings [N, P] of the prompts where the pipeline has them.
        count: N.
        guidance: guidance scale that a distilled UNet is told.
    """
    unet, conditions = pipeline.unet, {}
    if unet.config.get("addition_embed_type") == "text_time" and pooled is not None:
        height, width = image_size(pipeline)
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=pooled.dtype, device=pooled.device)
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.expand(count, TIME_IDS)}
    if unet.config.get("time_cond_proj_dim") is not None:
        scales = torch.full((count,), guidance - 1)
        embedding = pipeline.get_guidance_scale_embedding(scales, embedding_dim=unet.config.time_cond_proj_dim)
        conditions["timestep_cond"] = embedding.to(unet.device, unet.dtype)
    return conditions


def empty_share(pipeline: Pipeline, guidance: float) -> float:
    """How much of the empty prompt's prediction u classifier-free guidance takes off that of a prompt c: 1 − 1/w.

    An image follows u + w (c − u) = w (c − (1 − 1/w) u). None of u where w is at most 1, or where a distilled UNet is
    told of the guidance and predicts once.

    Args:
        pipeline: the pipeline with its UNet.
        guidance: w.
    """
    distilled = pipeline.unet.config.get("time_cond_proj_dim") is not None
    return 0.0 if guidance <= 1 or distilled else 1 - 1 / guidance
