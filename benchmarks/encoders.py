"""Pipelines of text encoders alone, of the real architectures with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mace_pl.pretraining.tokenizer import train_tokenizer

#: width, layers, heads, activation: CLIP ViT-L/14; OpenCLIP ViT-H/14 without its last layer; OpenCLIP ViT-bigG/14
ENCODERS: dict[str, list[tuple[int, int, int, str]]] = {
    "sd1": [(768, 12, 12, "quick_gelu")],
    "sd2": [(1024, 23, 16, "gelu")],
    "sdxl": [(768, 12, 12, "quick_gelu"), (1280, 32, 20, "gelu")],
    "toy": [(24, 2, 2, "quick_gelu")],
}


def text_pipeline(family: str, folder: Path) -> Any:
    """A pipeline of tokenizers and text encoders, without other networks.

    Args:
        family: a key of ``ENCODERS``.
        folder: for the tokenizer's files.
    """
    words = ["a photo of a ship", "a photo of a house", *(f"a photo {i} of a ship" for i in range(30))]
    tokenizer = train_tokenizer(words, 600)
    torch.manual_seed(0)
    encoders = []
    for i, (width, layers, heads, activation) in enumerate(ENCODERS[family]):
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=activation,
            projection_dim=width,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        encoders.append((CLIPTextModelWithProjection if i else CLIPTextModel)(config).eval())
    if len(encoders) == 2:
        return StableDiffusionXLPipeline(
            vae=None,
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=None,
            scheduler=PNDMScheduler(),
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        unet=None,
        scheduler=PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
