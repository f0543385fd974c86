"""``hardening.safetensors``: the LoRA of a hardened edit on top of it, in the names of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.methods.edit import Factors
from mace_pl.methods.lora import from_peft, to_peft

KIND, HARDENING_FILE = "hardening", "hardening.safetensors"
REPORT = "hardening.json"  # in the report of a hardened run


def read_hardening(folder: Path) -> Factors:
    """A [R, D] and B [O, R] by layer name; empty where the run is not hardened.

    Raises:
        UserError: the file cannot be read, or a hardened run has lost it.
    """
    file = folder / HARDENING_FILE
    if not file.is_file() and (folder / "report" / REPORT).is_file():
        raise UserError(
            f"run: {file} is missing, and report/{REPORT} says that the run is hardened. Put it back, or harden anew."
        )
    return from_peft(read_tensors(file, KIND, "run")[0]) if file.is_file() else {}


def write_hardening(folder: Path, factors: Factors, made: Mapping[str, Any]) -> None:
    """Write the file, with what it was made from."""
    write_tensors(folder / HARDENING_FILE, to_peft(factors), KIND, made)
