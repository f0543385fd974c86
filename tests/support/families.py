"""Pipelines of the families of Stable Diffusion: their real classes and structures at toy size."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from support.seeds import seeded

#: SD 1.x, 2.x base, 2.1 with v-prediction, XL; distilled without attention in the middle, without a middle, and with a
#: guidance embedding
FAMILIES = ("sd1", "sd2", "sd2_v", "sdxl", "distilled", "tiny", "lcm")


def text_config(like: Any, **changed: object) -> CLIPTextConfig:
    return CLIPTextConfig(**like.text_encoder.config.to_dict() | changed)


def four_blocks(**settings: object) -> UNet2DConditionModel:
    """The structure of SD 1.x at toy width."""
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16, 16, 16),
            "norm_num_groups": 8,
            "attention_head_dim": 4,
            "cross_attention_dim": 32,
            **settings,
        }
    )


def xl_blocks(pooled: int, width: int, **settings: object) -> UNet2DConditionModel:
    """The structure of SDXL at toy width."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        norm_num_groups=8,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
        **settings,
    )


def family(name: str, toy: Path) -> Any:
    """A pipeline of the family's real classes, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(1))
        return _made(name, toy)


def _made(name: str, toy: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(toy, safety_checker=None)
    if name == "sd1":
        pipeline.register_modules(unet=four_blocks())
    elif name == "sd2":  # OpenCLIP's activation, linear projections
        encoder = CLIPTextModel(text_config(pipeline, hidden_act="gelu"))
        pipeline.register_modules(unet=four_blocks(use_linear_projection=True), text_encoder=encoder)
    elif name == "sd2_v":  # wider than the toy, and its padding is not its end token
        tokenizer = CLIPTokenizer.from_pretrained(toy / "tokenizer", pad_token="!")
        encoder = CLIPTextModel(text_config(pipeline, hidden_act="gelu", hidden_size=48, num_hidden_layers=3))
        unet = four_blocks(use_linear_projection=True, cross_attention_dim=48)
        schedule = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
        pipeline.register_modules(unet=unet, text_encoder=encoder, tokenizer=tokenizer, scheduler=schedule)
    elif name == "distilled":
        pipeline.register_modules(unet=four_blocks(mid_block_type="UNetMidBlock2D"))
    elif name == "tiny":
        pipeline.register_modules(unet=four_blocks(mid_block_type=None))
    elif name == "lcm":
        schedule = LCMScheduler.from_config(pipeline.scheduler.config)
        pipeline.register_modules(unet=four_blocks(time_cond_proj_dim=8), scheduler=schedule)
    elif name == "sdxl":
        second = text_config(pipeline, hidden_act="gelu", hidden_size=48, projection_dim=40)
        return StableDiffusionXLPipeline(
            vae=pipeline.vae,
            text_encoder=pipeline.text_encoder,
            text_encoder_2=CLIPTextModelWithProjection(second),
            tokenizer=pipeline.tokenizer,
            tokenizer_2=CLIPTokenizer.from_pretrained(toy / "tokenizer", pad_token="!"),
            unet=xl_blocks(40, 32 + 48),
            scheduler=EulerDiscreteScheduler.from_config(pipeline.scheduler.config),
            add_watermarker=False,
        )
    return pipeline
