"""What the tests of exported formats share."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from mace_pl.cli import erase_main
from support.runs import checksums


def base(folder: Path, **settings: object) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **settings)


def export(run: Path, output: Path, *args: str) -> Path:
    erase_main(["export", "--run", str(run), "--output", str(output), *args])
    return output


NAMINGS = ["lora", "lora_diffusers", "lora_peft"]


def sums(folder: Path) -> dict[str, str]:
    return {str(Path(name).relative_to(folder)): value for name, value in checksums(folder).items()}


def same_encoder(base: Path, written: Path) -> bool:
    """Whether the copied text encoder has the base's weights, under the names that every program reads."""
    own, copy = (load_file(folder / "text_encoder/model.safetensors") for folder in (base, written))
    return {f"text_model.{name}" for name in own} == set(copy) and all(
        torch.equal(own[name], copy[f"text_model.{name}"]) for name in own
    )
