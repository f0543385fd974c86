"""Put edits and LoRAs that were written to files on top of a base pipeline, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from mace_pl.errors import Advice, UserError
from mace_pl.export.lora_files import CONFIG, merge_lora
from mace_pl.files.artifacts import read_metadata
from mace_pl.files.paths import resolve
from mace_pl.methods.edit import STAGE2, Edit, read_refined
from mace_pl.methods.hardening import HARDENING_FILE, read_hardening
from mace_pl.models.backbone import backbone_of
from mace_pl.models.base_model import BaseModel, base_hashes
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.run import Run

EDITS, OTHER = ("edit", "refined"), "lora of another program"
#: other files of this project
NO_EDITS = {"concept": "the sums of a concept", "statistics": "statistics of prompts", "unet": "a whole UNet"}
NO_EDITS |= {"single_file": "a whole checkpoint"}
HINT = "Give edit.safetensors, refined.safetensors, the output folder of fit, a LoRA file, or a folder of PEFT."


def apply_files(
    pipeline: Pipeline, files: Sequence[str], setting: str = "model.apply", same_unet: bool = False
) -> None:
    """Change the pipeline's weights by each file in turn.

    Args:
        pipeline: the base pipeline, changed in place.
        files: ``edit.safetensors`` or ``refined.safetensors``, a folder that holds one of them, or a LoRA in the names
            of kohya, diffusers or PEFT: a file, or the folder that holds it.
        setting: the option that named them, for error messages.
        same_unet: refuse edits of another UNet too, not of another text encoder alone: an edit may be tried on a
            fine-tuned UNet, but is not to be compared with it.

    Raises:
        UserError: no such file, or one that does not belong to this model.
    """
    check_order(files, setting)
    for file in files:
        apply_file(pipeline, resolve(file), setting, same_unet)


def check_order(files: Sequence[str], setting: str) -> None:
    """Refuse refined weights behind another file, which they would replace; say where edits come one upon another.

    Raises:
        UserError: naming the file.
    """
    kinds = {file: _kind(resolve(file), setting) for file in files}
    late = [file for file in files[1:] if kinds[file] == "refined"]
    if late:
        raise UserError(
            f"{setting}: {late[0]} holds whole weights, which would replace what {files[0]} changes. Name it first, or "
            f"give the edit.safetensors of its run."
        )
    edits = [file for file in files if kinds[file] in EDITS]
    if len(edits) > 1:
        rank_zero_warn(
            f"{setting}: {', '.join(edits)} are edits, each solved for its base alone: one upon another erases less "
            f"surely than one run of all their concepts.",
            category=Advice,
        )


def _kind(path: Path, setting: str) -> str:
    """What a file says that it is, or the edit or LoRA of a folder."""
    if (path / CONFIG).is_file():
        return OTHER
    kind: str = _metadata(_file_of(path, setting) if path.is_dir() else path, setting).get("kind", OTHER)
    return kind


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

    Raises:
        UserError: as :func:`apply_files`, or the edit of another base.
    """
    if (resolve(edited) / "model_index.json").is_file():
        return load_pipeline(edited)
    pipeline = load_pipeline(pretrained, revision, variant, layout)
    apply_files(pipeline, [edited], "model.edited", same_unet=True)
    return pipeline


def apply_file(pipeline: Pipeline, path: Path, setting: str, same_unet: bool = False) -> None:
    """Apply one file, by what it says it is."""
    if (path / CONFIG).is_file():
        merge_lora(pipeline, path, setting)
        return
    folder = path
    if path.is_dir():
        path = _file_of(path, setting)
    meta = _metadata(path, setting)
    kind = meta.get("kind", OTHER)
    if kind in EDITS:
        hashes = base_hashes(pipeline) if same_unet else {"text_encoder": encoder_fingerprint(pipeline)}
        BaseModel.read({}, meta).check(hashes, "model.pretrained", f"{setting}={path}", "model.pretrained")
        weights = _edited(pipeline, path, setting) if kind == "edit" else _refined(pipeline, path, setting)
        backbone_of(pipeline).set_key_values(weights)
        if kind == "edit" and read_hardening(folder, path):
            merge_lora(pipeline, folder / HARDENING_FILE, setting)
    elif kind == STAGE2:
        raise UserError(
            f"{setting}: {path} is the LoRA of one concept, which was trained on refined weights and is not the edit "
            f"on the base model. {HINT}"
        )
    elif kind in NO_EDITS:
        raise UserError(f"{setting}: {path} holds {NO_EDITS[kind]}, which is no edit. {HINT}")
    else:
        merge_lora(pipeline, path, setting)


def _file_of(folder: Path, setting: str) -> Path:
    """The edit of a run, or the one LoRA of a folder."""
    edit = Run.edit_in(folder)
    files = [edit] if edit else list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{setting}: {folder} holds {'several files' if files else 'no edit and no LoRA'}. {HINT}")
    return files[0]


def _metadata(path: Path, setting: str) -> dict[str, Any]:
    """What the file says about itself; nothing where another program wrote it."""
    try:
        return read_metadata(path, setting)
    except UserError as error:
        raise UserError(f"{error} {HINT}") from error


def _edited(pipeline: Pipeline, path: Path, setting: str) -> dict[str, Any]:
    """W R + B A by layer name, and W T of SDXL's pooled text."""
    edit, original = Edit.load(path), backbone_of(pipeline).text_layers()
    width = next(iter(original.values())).shape[1]
    if not set(edit.factors) <= set(original) or edit.R.shape != (width, width) or not edit.fits_pooled(original):
        raise UserError(f"{setting}: {path} was made from another model: its layers do not fit the UNet.")
    return edit.weights(original)


def _refined(pipeline: Pipeline, path: Path, setting: str) -> dict[str, Any]:
    """The stored projections by layer name."""
    weights = read_refined(path, backbone_of(pipeline).network.state_dict(), setting)
    return {key.removesuffix(".weight"): value for key, value in weights.items()}
