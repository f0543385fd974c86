"""Write a finished run again in another format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mace_pl.errors import UserError
from mace_pl.export.formats import Finished, check_formats
from mace_pl.export.lora import DEFAULT_MAX_ERROR, LORAS, check_rank
from mace_pl.files.artifacts import claim_output, written_aside
from mace_pl.files.owned import refuse_inputs
from mace_pl.library.history import History
from mace_pl.methods.edit import Edit
from mace_pl.methods.hardening import HARDENING_FILE
from mace_pl.models.backbone import backbone_of
from mace_pl.models.base_model import BaseModel
from mace_pl.models.protocols import Pipeline
from mace_pl.run import PLACES, Run

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_run(
    run: str,
    format: str,
    rank: int | str | None = None,
    max_error: float | None = None,
    output: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Write a finished run in another format, from its edit.safetensors and its base model.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        format: ``pipeline`` (diffusers folder), ``refined`` (key and value weights), ``edit`` (smallest exact form),
            ``lora`` (one ordinary LoRA of the whole edit in kohya's names, which every program reads),
            ``lora_diffusers`` or ``lora_peft`` (the same in the names of these libraries), ``single_file`` (one
            checkpoint in the original layout) or ``unet`` (the edited UNet under diffusers' names).
        rank: of a LoRA, or ``auto`` (default): the smallest that keeps ``max_error``.
        max_error: largest relative Frobenius error of a layer with ``rank`` auto; default 0.05.
        output: file or folder to write; default a place in the run's folder.
        dtype: ``float32``, ``float16`` or ``bfloat16``; default that of the base model's files. In ``pipeline`` it is
            the UNet's, the other parts are copied as they are.
        overwrite: replace ``output`` where it exists.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; where the run found it when None.

    Returns:
        What was written.

    Raises:
        UserError: no run there, an unknown format or dtype, a rank or error that cannot be, an output that exists,
            another base model, or one that the format cannot hold.
    """
    check_formats([format], "format")
    wanted, error = _rank(format, rank, max_error)
    if dtype is not None and (dtype not in DTYPES or format == "edit"):
        raise UserError(f"dtype={dtype} must be one of {', '.join(DTYPES)}, and none for edit (always float32).")
    loaded = Run.load(run)
    if format == "edit" and loaded.hardened:
        raise UserError(
            f"format=edit: the run is hardened, and its edit.safetensors holds the edit without that. Copy the file "
            f"with {HARDENING_FILE}, or choose another format."
        )
    edit = loaded.edit
    if wanted is not None:
        check_rank(edit, wanted)
    path = Path(output) if output else loaded.place(format)
    _claim(path, format, overwrite, loaded.folder)
    if path.resolve() != loaded.place(format).resolve():
        refuse_inputs(path, [("run", loaded.home)], "output")
    pipeline, source, base_now = loaded.base.load(pretrained, layout)
    refuse_inputs(path, [("base model", source.place)], "output")
    original = _original(pipeline, edit, base_now)
    known = (loaded.metrics, seen_of(loaded))
    finished = Finished(replace(loaded, base=base_now), pipeline, source, edit, original, *known)
    backbone_of(pipeline).set_key_values(finished.weights)
    with written_aside(path, overwrite=overwrite) as aside:
        finished.write(format, aside, DTYPES.get(dtype or ""), wanted, error)
    return path


def seen_of(run: Run) -> dict[str, Mapping[str, float]]:
    """Of a library without a report, how often each target was seen ``before`` and ``after`` its own run."""
    if run.metrics.is_file():
        return {}
    return History.load(run.home).scores({target: entry.name for target, entry in run.entries.items()})


def _rank(format: str, rank: int | str | None, max_error: float | None) -> tuple[int | None, float]:
    """The rank, None for auto, and the largest error."""
    if format not in LORAS and (rank is not None or max_error is not None):
        raise UserError(f"rank and max_error are settings of {', '.join(LORAS)}, not of {format}. Leave them out.")
    if isinstance(rank, str) and rank != "auto":
        raise UserError(f"rank={rank} must be a whole number of at least 1, or auto.")
    if isinstance(rank, int) and rank < 1:
        raise UserError(f"rank={rank} must be at least 1, or auto.")
    if isinstance(rank, int) and max_error is not None:
        raise UserError(f"max_error={max_error} chooses the rank, but rank={rank} is given. Pass --rank auto.")
    if max_error is not None and not 0 < max_error < 1:
        raise UserError(f"max_error={max_error} must be between 0 and 1, as in 0.05 for 5 %.")
    return (rank if isinstance(rank, int) else None), (DEFAULT_MAX_ERROR if max_error is None else max_error)


def _claim(path: Path, format: str, overwrite: bool, folder: Path) -> None:
    """Refuse an output that exists, that would replace the run itself, or that is named for another kind of thing."""
    if folder.resolve().is_relative_to(path.resolve()):
        raise UserError(f"output={path} would replace the run. Choose another --output.")
    file = PLACES[format].endswith(".safetensors")
    if file and (path.suffix != ".safetensors" or path.is_dir()):
        raise UserError(f"output={path} must be a file name that ends in .safetensors for format {format}.")
    if not file and path.suffix == ".safetensors":
        raise UserError(f"output={path} must be a folder for format {format}.")
    claim_output(path, overwrite, "output")


def _original(pipeline: Pipeline, edit: Edit, base: BaseModel) -> dict[str, torch.Tensor]:
    """The base's keys and values, and the layer of pooled text of SDXL.

    Raises:
        UserError: the model is not the one that the run edited.
    """
    original = backbone_of(pipeline).key_values()
    sides = {layer: (B.shape[0], A.shape[1]) for layer, (A, B) in edit.factors.items()}
    width = {weight.shape[1] for weight in original.values()}
    shapes = {layer: tuple(weight.shape) for layer, weight in original.items()}
    layers = changed_layers(pipeline, edit)
    if width != {len(edit.R)} or not sides.items() <= shapes.items() or not edit.fits_pooled(layers):
        raise UserError(
            f"run: the layers of {base.name} are not those that were edited. Give the run's base model with "
            f"--pretrained."
        )
    return layers


def changed_layers(pipeline: Pipeline, edit: Edit) -> dict[str, torch.Tensor]:
    """The weights that an edit may change, by layer name: those that read the text, and those of its hardening.

    Raises:
        UserError: the hardening is of another model.
    """
    backbone = backbone_of(pipeline)
    there, layers = set(backbone.attention_layers("all")), backbone.text_layers()
    other = [name for name in edit.hardening if name not in there]
    if not other:
        layers |= backbone.weights_of(name for name in edit.hardening if name not in layers)
        sides = {name: (len(B), A.shape[1]) for name, (A, B) in edit.hardening.items()}
        other = [name for name, side in sides.items() if side != tuple(layers[name].shape)]
    if other:
        raise UserError(f"run: its hardening does not fit {other[0]} of the base. Restore the file, or harden again.")
    return layers
