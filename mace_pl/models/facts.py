"""What a model's own files say of it before it is loaded: its family, the size of its latents, its scheduler."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from mace_pl.files.paths import hub_id, resolve
from mace_pl.models.base_checks import is_xl

NARROW = 128  # channels of a network below which a model is tiny; of all Stable Diffusion it has 320
CONTEXT = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"  # of a single checkpoint
FAMILY_OF = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # by the width of the text
PARTS = ("unet/config.json", "scheduler/scheduler_config.json")
VAE = "vae/config.json"
PIXELS = 8  # of a side of an image for each of the latents' side, in all Stable Diffusion


@dataclass(frozen=True)
class ModelFacts:
    """What a model's own files say.

    Attributes:
        family: None where it is none of the table.
        side: of its latents; None where they do not say.
        scheduler: its class.
        pixels: of a side of an image for each of the latents' side.
    """

    family: str | None = None
    side: int | None = None
    scheduler: str = ""
    pixels: int = PIXELS


def facts_of(pretrained: str, revision: str | None = None) -> ModelFacts:
    """Family, latents and scheduler, by a model's configurations or the shapes in a single checkpoint.

    What cannot be read is left to whoever loads the model, and says why.
    """
    place = resolve(pretrained)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, SafetensorError):
        if place.is_file():
            return facts_of_file(place)
        unet, scheduler = (settings_of(place, pretrained, revision, part) for part in PARTS)
        width, side = unet["cross_attention_dim"], unet.get("sample_size")
        family = "tiny" if unet["block_out_channels"][0] < NARROW else FAMILY_OF.get(width)
        side = max(side) if isinstance(side, list) else side
        pixels = pixels_of(place / VAE) if family == "tiny" else PIXELS
        return ModelFacts(family, side, scheduler.get("_class_name", ""), pixels)
    return ModelFacts()


def pixels_of(file: Path) -> int:
    """Of an image for each latent along a side, by the configuration of a VAE; 8 where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(2 ** (len(json.loads(file.read_text(encoding="utf-8"))["block_out_channels"]) - 1))
    return PIXELS


def settings_of(place: Path, pretrained: str, revision: str | None, part: str) -> dict[str, Any]:
    """A configuration of a folder or hub id."""
    file = place / part
    if not place.exists() and hub_id(pretrained):
        file = Path(hf_hub_download(pretrained, part, revision=revision))
    settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise TypeError(f"{file} holds no mapping")
    return settings


def facts_of_file(file: Path) -> ModelFacts:
    """Of a checkpoint in the original layout: the family alone, by the width of the text."""
    with safe_open(str(file), framework="pt") as opened:
        names = set(opened.keys())
        if is_xl(dict.fromkeys(names, ())):
            return ModelFacts("sdxl")
        name = next((name for block in (1, 2, 4) if (name := CONTEXT.format(block)) in names), "")
        if not name:
            return ModelFacts()
        channels, width = opened.get_slice(name).get_shape()
    return ModelFacts("tiny" if channels < NARROW else FAMILY_OF.get(width))
