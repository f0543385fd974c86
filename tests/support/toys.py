"""A Stable Diffusion pipeline and a CLIP model at toy size: the same bytes in every process; no downloads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mace_pl.pretraining.tokenizer import learn_merges
from support.seeds import seeded

SENTENCES = [
    "a photo of a ship",
    "a photo of the ground",
    "a picture of a dog and a cat",
    "a photo of a person in the sky",
    "a drawing of a bird in the street",
    "art in the style of a painter",
    "a house on a blue background",
]


def _tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer over a small BPE, so that most words are one piece and others a few.

    Not by the trainer of the tokenizers library, which breaks ties by the order of its hash maps: other tokens, and so
    other numbers in every test, in each process.
    """
    alphabet = [chr(c) for c in range(33, 127)]
    merges = learn_merges({word for sentence in SENTENCES for word in sentence.split()}, limit=100)
    words = [*alphabet, *(f"{c}</w>" for c in alphabet), *(left + right for left, right in merges)]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def pipeline(folder: Path) -> Path:
    """Saves a StableDiffusionPipeline: text width 32, latents 4 x 8 x 8, images 16 x 16, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(0))
        tokenizer = _tokenizer()
        made = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    made.save_pretrained(folder)
    return folder


def clip(folder: Path, toy: Path) -> Path:
    """Saves a CLIPModel over the toy tokenizer: images 16 x 16 in four patches, width 8, seeded."""
    tokenizer = CLIPTokenizer.from_pretrained(toy / "tokenizer")
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(0))
        model = CLIPModel(CLIPConfig(text_config=layer | words, vision_config=layer | vision, projection_dim=8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
