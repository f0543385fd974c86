"""Read a pipeline from a folder, part by part, or from a single checkpoint, and see that the files hold it."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open

from mace_pl.errors import UserError, one_line
from mace_pl.models.base_checks import FAMILY, check_keys, check_original, check_prediction, check_wanted, is_xl
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source

#: what the libraries raise of files that they cannot read
UNREADABLE = (OSError, TypeError, KeyError, AttributeError, RuntimeError, ValueError, SafetensorError)
MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
#: parts of a text-to-image pipeline that edits and images do without
LEFT_OUT = ("safety_checker", "image_encoder")
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<before>[\w-]+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<behind>[\w-]+))?\.(?:safetensors|bin)"
)
#: pipelines that are no Stable Diffusion 1.x, 2.x or XL, or generate from more than text, for all their names
OTHER = re.compile(r"StableDiffusion(3|Cascade|.*(Upscale|LDM3D|Gligen|GLIGEN))")


def variants_of(folder: Path) -> set[str | None]:
    """The variants whose weights a part's folder holds, as ``fp16``; None for the plain files."""
    matches = [WEIGHTS.fullmatch(file.name) for file in folder.iterdir()] if folder.is_dir() else []
    return {match["before"] or match["behind"] for match in matches if match}


def pipeline_class(index: dict[str, Any], name: str) -> Any:
    """The text-to-image class for what an index lists; img2img and inpainting classes hold the same parts.

    Raises:
        UserError: another family.
    """
    class_name = str(index.get("_class_name"))
    if class_name.startswith("StableDiffusion") and not OTHER.match(class_name):
        return StableDiffusionXLPipeline if class_name.startswith("StableDiffusionXL") else StableDiffusionPipeline
    if class_name.startswith("LatentConsistencyModel"):
        return LatentConsistencyModelPipeline
    raise UserError(f"{name}: its model_index.json names {class_name}, which is not edited. {FAMILY}")


def load_folder(
    folder: Path, pretrained: str, variant: str | None, models: Sequence[str] = MODELS
) -> tuple[Any, Source]:
    """A pipeline in float32 whose files hold all of its weights, and what was read.

    Args:
        folder: with ``model_index.json``.
        pretrained: what the user called it.
        variant: which files are read; where None and a part has no plain files, the one variant that it has.
        models: which of the parts with weights are read.

    Raises:
        UserError: another class of pipeline, a part without files, or files that are not its weights.
    """
    name = f"model.pretrained={pretrained}"
    index = _settings(folder / "model_index.json", name)
    cls = pipeline_class(index, name)
    listed = {part: index[part] for part in MODELS if isinstance(index.get(part), list) and index[part][0] is not None}
    variants = {part: variants_of(folder / part) for part in listed if part in models}
    if variant is not None and not any(variant in one for one in variants.values()):
        there = sorted(str(one) for one in set().union(*variants.values()) - {None})
        raise UserError(
            f"model.variant={variant}: {name} has no such files; variants there: {', '.join(there) or 'none'}. Drop it "
            f"or name one of these."
        )
    read = {part: _variant(part, one, variant, name) for part, one in variants.items()}
    parts = {part: _part(folder, part, listed[part], one, name) for part, one in read.items()}
    without = [part for part in MODELS if part not in models and part in inspect.signature(cls.__init__).parameters]
    skipped = {part: None for part in (*(p for p in LEFT_OUT if p in index), *without)}
    pipeline: Pipeline = cls.from_pretrained(str(folder), dtype=torch.float32, **parts, **skipped)
    return pipeline, Source(folder, variant=next((one for one in read.values() if one is not None), None))


def _settings(file: Path, name: str) -> dict[str, Any]:
    """The content of a configuration."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: {file} is not a valid JSON file ({one_line(error)}). Get it again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name}: {file} holds no settings. Get it again.")
    return settings


def _variant(part: str, variants: set[str | None], wanted: str | None, name: str) -> str | None:
    """Which files of a part are read; as diffusers does, the plain ones where it has none of the wanted variant."""
    if wanted in variants:
        return wanted
    if None in variants:
        return None
    there = sorted(str(one) for one in variants)
    if not there:
        raise UserError(f"{name}: its part {part} has no weights (.safetensors or .bin). Get its files again.")
    if wanted is None and len(there) == 1:
        return there[0]
    raise UserError(f"{name}: its {part} has files of the variants {', '.join(there)} only. Name one in model.variant.")


def _part(folder: Path, part: str, listed: Sequence[Any], variant: str | None, name: str) -> Any:
    """A part with weights, of the class that the index names."""
    library, cls_name = listed
    if library not in ("diffusers", "transformers") or not hasattr(importlib.import_module(library), cls_name):
        raise UserError(f"{name}: its {part} is a {library}.{cls_name}, which is not of diffusers or transformers.")
    cls = getattr(importlib.import_module(library), cls_name)
    if part == "unet":
        check_wanted(_settings(folder / part / "config.json", name), name)
    module, info = cls.from_pretrained(
        str(folder / part), dtype=torch.float32, variant=variant, output_loading_info=True
    )
    check_keys(part, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), name)
    return module


def load_file(source: Path, config: str | None, name: str) -> Any:
    """The pipeline of a checkpoint in the original layout.

    Args:
        source: the ``.safetensors`` file.
        config: folder or hub id of the layout.
        name: the model, for messages.

    Raises:
        UserError: a part that it lacks, or a layout that does not go with it.
    """
    with safe_open(str(source), framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
        header = file.metadata() or {}
    check_original(shapes, name)
    cls = StableDiffusionXLPipeline if is_xl(shapes) else StableDiffusionPipeline
    try:
        pipeline: Pipeline = cls.from_single_file(str(source), config=config, dtype=torch.float32)
    except UNREADABLE as error:
        given = f"model.layout={config} does not go with it" if config else "model.layout is not given"
        raise UserError(
            f"{name} cannot be loaded, {given}: {one_line(error)} Give model.layout, a diffusers folder of the same "
            f"family (its weights are not read)."
        ) from error
    for part in MODELS:
        module = getattr(pipeline, part, None)
        lacking = [key for key, value in module.state_dict().items() if value.is_meta] if module is not None else []
        check_keys(part, lacking, [], name)
    check_prediction(pipeline, list(shapes), header, config)
    return pipeline
