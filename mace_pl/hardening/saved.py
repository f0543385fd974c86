"""The file from which an interrupted hardening resumes, beside the output folder, written aside and renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.files.identity import differing, not_taken
from mace_pl.files.paths import training_folder
from mace_pl.hardening.harden import State
from mace_pl.hardening.originals import Originals

KIND = "hardening_state"
IMAGES = {"targets": "images.targets", "preserved": "images.preserved"}


class Saved:
    """What an interrupted hardening left, and what this one leaves until it is written.

    It lies in a folder of its own, where no concept in training is looked for.

    Args:
        output_dir: the folder that the run will be written into.
        inputs: all that the weights depend on; the file is taken where they are equal.
    """

    def __init__(self, output_dir: Path, inputs: Mapping[str, Any]) -> None:
        self.file = training_folder(output_dir) / "hardening" / "state.safetensors"
        self.inputs = dict(inputs)

    def read(self, says: bool = True) -> tuple[Originals, State] | None:
        """The images and the state; None where nothing is there, or it has other inputs, which one process says."""
        if not self.file.is_file():
            return None
        tensors, made = read_tensors(self.file, KIND, "output_dir")
        why = differing(made["inputs"], self.inputs)
        if why:
            if says:
                not_taken("the hardening", self.file, why)
            return None
        targets, preserved = (tensors.pop(name) for name in IMAGES.values())
        done = {name: made[name] for name in ("rounds", "steps", "attacks")}
        losses = [(first, second) for first, second in made["losses"]]
        state = State(tensors=tensors, losses=losses, seconds=(made["seconds"][0], made["seconds"][1]), **done)
        return Originals(targets, preserved, made["names"]), state

    def write(self, originals: Originals, state: State) -> None:
        """Replace the file."""
        tensors = {**state.tensors, IMAGES["targets"]: originals.targets, IMAGES["preserved"]: originals.preserved}
        made = {name: getattr(state, name) for name in ("rounds", "steps", "losses", "attacks", "seconds")}
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        write_tensors(self.file, tensors, KIND, {**made, "names": list(originals.names), "inputs": self.inputs})

    def remove(self) -> None:
        """The run is written."""
        self.file.unlink(missing_ok=True)
        for left in self.file.parent.glob(f".{self.file.name}.*.partial"):
            left.unlink(missing_ok=True)  # of a process that was killed
        with contextlib.suppress(OSError):  # other files stay, and the folders with them
            self.file.parent.rmdir()
            self.file.parent.parent.rmdir()
