"""Tensors kept in temporary files until they are read, so that memory does not grow with the number of concepts."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.leftovers import TAG, ended, remove, tag

NAME = "tensor"
FOLDER = re.compile(rf"mace-pl-{TAG}-.*")


class TensorStore:
    """Tensors by their number, each in a safetensors file of a temporary folder.

    The folder lies where ``TMPDIR`` says, and is removed with this object; where a process was killed, by the next one
    on that machine that has such a store.
    """

    def __init__(self) -> None:
        for left in Path(gettempdir()).glob("mace-pl-*"):
            found = FOLDER.fullmatch(left.name)
            if found and ended(found, left):
                remove(left)  # no other user's: a folder of temporary files does not let that happen
        self.folder = TemporaryDirectory(prefix=f"mace-pl-{tag()}-", ignore_cleanup_errors=True)
        self.shapes: list[tuple[int, ...]] = []

    def path(self, number: int) -> Path:
        """Where a tensor lies."""
        return Path(self.folder.name) / f"{number}.safetensors"

    def add(self, tensor: Tensor) -> int:
        """Write a tensor; returns its number.

        Raises:
            UserError: there is no room.
        """
        number = len(self.shapes)
        try:
            save_file({NAME: tensor.detach().cpu().contiguous()}, self.path(number))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write to {gettempdir()} ({error}). Free some space, or set TMPDIR to a folder with more."
            ) from error
        self.shapes.append(tuple(tensor.shape))
        return number

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, number: int) -> Tensor:
        """The whole tensor."""
        with safe_open(self.path(number), "pt") as file:
            found: Tensor = file.get_tensor(NAME)
        return found

    def row(self, number: int, i: int) -> Tensor:
        """``self[number][i]`` without reading the rest."""
        if not 0 <= i < self.shapes[number][0]:
            raise IndexError(f"row {i} of {self.shapes[number][0]}")
        with safe_open(self.path(number), "pt") as file:
            found: Tensor = file.get_slice(NAME)[i]
        return found
