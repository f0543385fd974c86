"""One ordinary LoRA of a whole edit: the truncated SVD of W* − W, in the namings of three families of programs.

Legend: D text width, O output width of a key or value projection, R rank, S singular values of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.export.metadata import family, kohya_facts
from mace_pl.export.single_file import UNET_PREFIX, has_original_names, unet_names
from mace_pl.files.artifacts import write_tensors
from mace_pl.files.paths import hub_id
from mace_pl.files.screen import screen
from mace_pl.methods.edit import Edit, Factors
from mace_pl.methods.lora import to_peft
from mace_pl.models.attention_layers import reads_image_only
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pooled_text import is_pooled
from mace_pl.models.protocols import Network, Pipeline

KIND = "edit_lora"
LORAS = ("lora", "lora_diffusers", "lora_peft")  # kohya's names, which every program reads; then those of two libraries
PEFT_PREFIX = "base_model.model."
DEFAULT_MAX_ERROR = 0.05


def deltas(edit: Edit, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ΔW = W* − W [O, D] by layer name, in float64."""
    exact = {name: weight.double() for name, weight in original.items()}
    return {name: weight - exact[name] for name, weight in edit.weights(exact).items()}


def truncation_errors(values_S: Tensor) -> Tensor:
    """‖ΔW − ΔW_R‖_F / ‖ΔW‖_F of the best approximation of rank R for R = 0 … S, [S + 1]; zeros for ΔW = 0."""
    left = values_S.double().square().flip(0).cumsum(0).flip(0).sqrt()
    errors = torch.cat([left, torch.zeros(1, dtype=torch.float64)])
    return errors / errors[0] if errors[0] > 0 else errors


def smallest_rank(differences: Mapping[str, Tensor], max_error: float) -> int:
    """The smallest rank, at least 1, at which no layer's truncation error exceeds ``max_error``."""
    errors = (truncation_errors(torch.linalg.svdvals(delta)) for delta in differences.values())
    return max(max(1, int((e > max_error).sum())) for e in errors)


def truncated(delta_OD: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A [R, D] = √S Vᵀ, B [O, R] = U √S of the best approximation B A of that rank, and its relative error.

    A rank above the layer's own is filled up with zeros.
    """
    U, values, Vt = torch.linalg.svd(delta_OD, full_matrices=False)
    root = values[:rank].sqrt()
    A, B = root[:, None] * Vt[:rank], U[:, :rank] * root
    error = float(truncation_errors(values)[min(rank, len(values))])
    missing = rank - len(A)
    return torch.nn.functional.pad(A, (0, 0, 0, missing)), torch.nn.functional.pad(B, (0, missing)), error


def check_rank(edit: Edit, rank: int) -> None:
    """Refuse a rank that is not between 1 and the smaller side of every layer.

    Raises:
        UserError: naming the layer that allows least.
    """
    sides = {name: min(A.shape[1], B.shape[0]) for name, (A, B) in edit.factors.items()}
    sides = sides or {"the text": len(edit.R)}  # nothing was trained
    name = min(sides, key=sides.__getitem__)
    if not 1 <= rank <= sides[name]:
        raise UserError(f"rank={rank} must be between 1 and {sides[name]}, the smaller side of {name}; or pass auto.")


def to_kohya(factors: Factors, unet: Network, sdxl: bool) -> dict[str, Tensor]:
    """``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``, as every program reads them.

    The names come from kohya's sd-scripts, which trains SD 1.x and 2.x under diffusers' block names and SDXL under the
    original ones (``input_blocks_4_1_…``); a distilled UNet that has none keeps diffusers'. The alpha is the rank, so
    that the scale is one.
    """
    layers = {name: name for name in factors}
    if sdxl and has_original_names(unet):
        diffusers_names = {names_of[0]: name for name, names_of in unet_names(unet).items()}
        end = ".weight"
        layers = {n: diffusers_names[n + end].removeprefix(UNET_PREFIX).removesuffix(end) for n in factors}
    tensors = {}
    for name, (A, B) in factors.items():
        layer = f"lora_unet_{layers[name].replace('.', '_')}"
        tensors[f"{layer}.lora_down.weight"] = A
        tensors[f"{layer}.lora_up.weight"] = B
        tensors[f"{layer}.alpha"] = torch.tensor(float(len(A)))
    return tensors


@dataclass(frozen=True)
class WholeLora:
    """One LoRA of a whole edit: (A [R, D], B [O, R]) by layer name in float64, R, and the relative errors by layer."""

    factors: Factors
    rank: int
    errors: dict[str, float]

    @staticmethod
    def of(differences: Mapping[str, Tensor], rank: int | None, max_error: float) -> WholeLora:
        """The truncated SVD of ΔW by layer name, with a table of its errors on screen.

        Args:
            differences: ΔW, float64.
            rank: R for every layer; the smallest that keeps ``max_error`` when None.
            max_error: largest relative Frobenius error of a layer.
        """
        rank = rank or smallest_rank(differences, max_error)
        approximations = {name: truncated(delta, rank) for name, delta in differences.items()}
        errors = {name: error for name, (_, _, error) in approximations.items()}
        show_errors(rank, errors)
        return WholeLora({name: (A, B) for name, (A, B, _) in approximations.items()}, rank, errors)


def write_lora(
    folder: Path,
    format: str,
    lora: WholeLora,
    pipeline: Pipeline,
    dtype: torch.dtype,
    metadata: Mapping[str, Any],
    said: Mapping[str, str],
) -> None:
    """Write the LoRA in one naming, with its truncation errors in the file.

    Args:
        folder: gets ``<name>.safetensors``, or for ``lora_peft`` PEFT's two files.
        format: one of :data:`LORAS`.
        lora: what is written.
        pipeline: the base pipeline.
        dtype: of A and B.
        metadata: provenance, completed by ``rank`` and ``relative_errors`` by layer; ``name`` names the file.
        said: what the file says about itself to other programs.
    """
    factors: Factors = {name: (A.to(dtype), B.to(dtype)) for name, (A, B) in lora.factors.items()}
    meta = {**metadata, "rank": lora.rank, "relative_errors": lora.errors}
    file = folder / f"{metadata['name']}.safetensors"
    folder.mkdir(parents=True)
    if format == "lora":
        said = {**said, **kohya_facts(pipeline, metadata["name"], metadata["pretrained"], lora.rank)}
        write_tensors(
            file, to_kohya(factors, backbone_of(pipeline).network, family(pipeline) == "sdxl"), KIND, meta, said
        )
    elif format == "lora_diffusers":
        write_tensors(file, to_peft(factors), KIND, meta, said)
    else:
        write_peft(folder, factors, lora.rank, hub_id(metadata["pretrained"]))
        write_tensors(folder / "adapter_model.safetensors", to_peft(factors, PEFT_PREFIX), KIND, meta, said)


def write_peft(folder: Path, factors: Factors, rank: int, base: str | None) -> None:
    """Write PEFT's configuration: alpha is the rank, the layers are those of the edit."""
    from peft import LoraConfig  # takes a second to import

    config = LoraConfig(
        base_model_name_or_path=base, r=rank, lora_alpha=rank, target_modules=list(factors), inference_mode=True
    )
    config.save_pretrained(str(folder))


def show_errors(rank: int, errors: Mapping[str, float]) -> None:
    """The table of truncation errors, one row per cross-attention so that the names fit a terminal.

    Of a hardened edit it shows what changes keys and values of cross-attention; the other layers are of the hardening's
    rank, which the LoRA's is above wherever it keeps the edit.
    """
    pooled = {name: error for name, error in errors.items() if is_pooled(name)}
    others = {name: error for name, error in errors.items() if reads_image_only(name)}
    errors = {name: error for name, error in errors.items() if name not in pooled and name not in others}
    table = Table(title=f"LoRA of the whole edit, rank {rank}: ‖ΔW − BA‖ / ‖ΔW‖")
    table.add_column("cross-attention of", overflow="fold")
    for part in ("to_k", "to_v"):
        table.add_column(part, justify="right")
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in errors):
        block = layer.rpartition(".")[0]  # its last part is the same in all of them
        table.add_row(block, *[f"{errors[f'{layer}.{part}']:.2%}" for part in ("to_k", "to_v")])
    table.add_section()
    largest = {part: max(e for name, e in errors.items() if name.endswith(part)) for part in ("to_k", "to_v")}
    if others:
        table.add_row("other layers of the hardening", "", f"{max(others.values()):.2%}")
    table.add_row("largest", *[f"{error:.2%}" for error in largest.values()])
    for name, error in pooled.items():
        table.add_row(f"{name} (pooled text)", "", f"{error:.2%}")
    screen().print(table)
    worst = max([*largest.values(), *others.values()])
    if worst > DEFAULT_MAX_ERROR:
        screen().print(
            f"This LoRA is up to {worst:.0%} off the edit, where --rank auto stays below "
            f"{DEFAULT_MAX_ERROR:.0%}: score it before you ship it.",
            highlight=False,
        )
