"""Load a pipeline of the Stable Diffusion family with clear errors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from mace_pl.attention import cross_attentions
from mace_pl.paths import resolve
from mace_pl.text import text_parts


def load_pipeline(pretrained: str) -> Any:
    """The whole pipeline in float32, frozen, without its safety checker.

    Args:
        pretrained: a diffusers folder, or a hub id.

    Raises:
        ValueError: no such folder or id, no pipeline in it, or a UNet without cross-attention.
    """
    source = resolve(pretrained)
    hint = "Give the folder of a Stable Diffusion pipeline (with model_index.json) or a hub id."
    if source.exists() and not (source / "model_index.json").is_file():
        raise ValueError(f"model.pretrained={pretrained} has no model_index.json. {hint}")
    # "checkpoints/emoji" looks like a hub id; where its first part is a folder here, a path was meant
    path_meant = pretrained.count("/") != 1 or pretrained.startswith((".", "/"))
    path_meant = path_meant or resolve(Path(pretrained).parent).is_dir()
    if not source.exists() and path_meant:
        raise ValueError(f"model.pretrained={pretrained} does not exist. {hint}")
    place = str(source) if source.exists() else pretrained
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(place, dtype=torch.float32, safety_checker=None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"model.pretrained={pretrained} cannot be loaded: {error} {hint}") from error
    if getattr(pipeline, "unet", None) is None:
        raise ValueError(f"model.pretrained={pretrained} has no UNet. {hint}")
    cross_attentions(pipeline.unet)
    check_conditions(pipeline.unet)
    for part in (pipeline.unet, pipeline.vae, *text_parts(pipeline)[1]):
        part.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_conditions(unet: Any) -> None:
    """Refuse a UNet that wants conditions which come from something else than text and picture size.

    Raises:
        ValueError: naming what it wants.
    """
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        value = unet.config.get(name)
        if value is not None and (name, value) != ("addition_embed_type", "text_time"):
            raise ValueError(
                f"model.pretrained: its UNet has {name}={value}, which training cannot feed. Give a Stable Diffusion "
                f"1.x, 2.x or XL model, or one distilled from these."
            )


def unet_fingerprint(unet: Any) -> str:
    """SHA-256 over the UNet's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def picture_size(pipeline: Any) -> tuple[int, int]:
    """(height, width) in pixels that the pipeline draws by default."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = pipeline.vae_scale_factor
    return height * factor, width * factor


def relative_to_project(path: Path) -> str:
    """A path as it is shown and stored: relative to the working folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
