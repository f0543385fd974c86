"""``hardening.safetensors``: the LoRA of a hardened edit on top of it, in the names of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.files.identity import hash_files
from mace_pl.methods.edit import Factors
from mace_pl.methods.lora import from_peft, to_peft

KIND, HARDENING_FILE = "hardening", "hardening.safetensors"
REPORT = "hardening.json"  # in the report of a hardened run


def is_hardened(folder: Path) -> bool:
    """Whether a run is hardened; also where it has lost the file, and its report says so."""
    return (folder / HARDENING_FILE).is_file() or (folder / "report" / REPORT).is_file()


def read_hardening(folder: Path, edit: Path) -> Factors:
    """A [R, D] and B [O, R] by layer name; empty where the run is not hardened.

    Args:
        folder: of the run.
        edit: its edit, on top of which the hardening lies.

    Raises:
        UserError: the file cannot be read, a hardened run has lost it, or it was trained on top of another edit.
    """
    file = folder / HARDENING_FILE
    if not file.is_file():
        if is_hardened(folder):
            raise UserError(
                f"run: {file} is missing, and report/{REPORT} says that the run is hardened. Put it back, or harden "
                f"anew."
            )
        return {}
    tensors, made = read_tensors(file, KIND, "run")
    if made.get("edit_file") != hash_files([edit]):
        raise UserError(
            f"run: {file} was trained on top of another {edit.name} than the one beside it. Put back the one that "
            f"belongs to it, or harden anew."
        )
    return from_peft(tensors)


def write_hardening(folder: Path, edit: Path, factors: Factors, made: Mapping[str, Any]) -> None:
    """Write the file, with what it was made from; the edit is there."""
    write_tensors(folder / HARDENING_FILE, to_peft(factors), KIND, {**made, "edit_file": hash_files([edit])})
