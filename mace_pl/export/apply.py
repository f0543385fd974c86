"""Put edits and LoRAs that were written to files on top of a base pipeline, in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mace_pl.errors import UserError
from mace_pl.export.lora_files import CONFIG, merge_lora
from mace_pl.files.artifacts import read_tensors
from mace_pl.files.paths import resolve
from mace_pl.methods.edit import STAGE2, Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.text_encoding import encoder_fingerprint

HINT = "Give edit.safetensors, refined.safetensors, the output folder of fit, a LoRA file, or a folder of PEFT."


def apply_files(pipeline: Any, files: Sequence[str], setting: str = "model.apply") -> None:
    """Change the pipeline's weights by each file in turn.

    Args:
        pipeline: the base pipeline, changed in place.
        files: ``edit.safetensors`` or ``refined.safetensors``, a folder that holds one of them, or a LoRA in the names
            of kohya, diffusers or PEFT: a file, or the folder that holds it.
        setting: the option that named them, for error messages.

    Raises:
        UserError: no such file, or one that does not belong to this model.
    """
    for file in files:
        apply_file(pipeline, resolve(file), setting)


def load_edited(
    pretrained: str, edited: str, revision: str | None = None, variant: str | None = None, layout: str | None = None
) -> Any:
    """A pipeline that is edited: a whole one, or the base with a file or run on top.

    Args:
        pretrained: the base pipeline.
        edited: a pipeline folder, or what :func:`apply_files` takes.
        revision: of the base pipeline, as ``variant`` and ``layout``: see :func:`load_pipeline`.
        variant: likewise.
        layout: likewise.
    """
    if (resolve(edited) / "model_index.json").is_file():
        return load_pipeline(edited)
    pipeline = load_pipeline(pretrained, revision, variant, layout)
    apply_files(pipeline, [edited], "model.edited")
    return pipeline


def apply_file(pipeline: Any, path: Path, setting: str) -> None:
    """Apply one file, by what it says it is."""
    if (path / CONFIG).is_file():
        merge_lora(pipeline, path, setting)
        return
    if path.is_dir():
        path = _file_of(path, setting)
    meta = _metadata(path, setting)
    kind = meta.get("kind", "lora of another program")
    if kind in ("edit", "refined"):
        _check_encoder(pipeline, path, meta, setting)
        weights = _edited(pipeline, path, setting) if kind == "edit" else _refined(pipeline, path, setting)
        backbone_of(pipeline).set_key_values(weights)
    elif kind == STAGE2:
        raise UserError(
            f"{setting}: {path} is the LoRA of one concept, which was trained on refined weights and is not the edit "
            f"on the base model. {HINT}"
        )
    else:
        merge_lora(pipeline, path, setting)


def _file_of(folder: Path, setting: str) -> Path:
    """The edit of a run, or the one LoRA of a folder."""
    names = ("edit.safetensors", "refined.safetensors")
    found = [folder / name for name in names if (folder / name).is_file()][:1] or list(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise UserError(f"{setting}: {folder} holds {'several files' if found else 'no edit and no LoRA'}. {HINT}")
    return found[0]


def _metadata(path: Path, setting: str) -> dict[str, Any]:
    """What the file says about itself; nothing where another program wrote it."""
    if not path.is_file():
        raise UserError(f"{setting}: {path} does not exist. {HINT}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{setting}: {path} is no readable safetensors file ({error}). {HINT}") from error
    found: dict[str, Any] = json.loads(header.get("mace_pl", "{}"))
    return found


def _check_encoder(pipeline: Any, path: Path, meta: dict[str, Any], setting: str) -> None:
    made_with = meta.get("text_encoder")
    if made_with is not None and made_with != encoder_fingerprint(pipeline):
        raise UserError(
            f"{setting}: {path} was made with another text encoder (from {meta.get('pretrained')}). Give its own base "
            f"model as --model.pretrained."
        )


def _edited(pipeline: Any, path: Path, setting: str) -> dict[str, Any]:
    """W R + B A by layer name."""
    edit, original = Edit.load(path), backbone_of(pipeline).key_values()
    width = next(iter(original.values())).shape[1]
    if (edit.factors and set(edit.factors) != set(original)) or edit.R.shape != (width, width):
        raise UserError(f"{setting}: {path} was made from another model: its layers do not fit the UNet.")
    return edit.weights(original)


def _refined(pipeline: Any, path: Path, setting: str) -> dict[str, Any]:
    """The stored projections by layer name."""
    weights, _ = read_tensors(path, "refined", setting)
    own = backbone_of(pipeline).network.state_dict()
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        raise UserError(f"{setting}: {path} was made from another model: {wrong[0]} does not fit its UNet.")
    return {key.removesuffix(".weight"): value for key, value in weights.items()}
