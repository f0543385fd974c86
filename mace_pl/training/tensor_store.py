"""Tensors that wait in a file until they are wanted, so that memory does not grow with the number of concepts."""

from __future__ import annotations

import os
from math import prod
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace_pl.errors import UserError


class Filed:
    """Tensors in a temporary file, by their number.

    The file has no name, so the system removes it however the process ends. It lies where ``TMPDIR`` says.
    """

    def __init__(self) -> None:
        self.file: Any = TemporaryFile(prefix="mace-pl-")  # noqa: SIM115 - open as long as this object lives
        self.places: list[tuple[int, np.dtype[Any], torch.Size]] = []

    def add(self, tensor: Tensor) -> int:
        """Write a tensor; returns its number.

        Raises:
            UserError: there is no room.
        """
        values = tensor.detach().cpu().numpy()
        try:
            self.places.append((self.file.seek(0, os.SEEK_END), values.dtype, tensor.shape))
            self.file.write(values.tobytes())
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write to {gettempdir()} ({error}). Free some space, or set TMPDIR to a folder with more."
            ) from error
        return len(self.places) - 1

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Tensor:
        """The whole tensor."""
        place, dtype, shape = self.places[number]
        return self._read(place, dtype, shape)

    def row(self, number: int, i: int) -> Tensor:
        """``self[number][i]`` without reading the rest."""
        place, dtype, shape = self.places[number]
        if not 0 <= i < shape[0]:
            raise IndexError(f"row {i} of {shape[0]}")
        return self._read(place + i * prod(shape[1:]) * dtype.itemsize, dtype, shape[1:])

    def _read(self, place: int, dtype: np.dtype[Any], shape: torch.Size) -> Tensor:
        self.file.seek(place)
        return torch.from_numpy(np.fromfile(self.file, dtype, prod(shape))).view(shape)
