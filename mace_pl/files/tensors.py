"""Named tensors as the content of a file: their hash, and whether they can be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError


def hash_tensors(tensors: Mapping[str, Tensor], said: Any = None) -> str:
    """SHA-256 over names, shapes and bytes of tensors, and over what is said with them."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse to write values that no program can use.

    Args:
        tensors: what would be written, in the dtypes of the file.
        name: of the file, for the message.

    Raises:
        UserError: naming the tensor and its dtype.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"{name} is not written: values of {key} are not finite in {str(tensor.dtype).removeprefix('torch.')}. "
                f"Export with --dtype float32; where that is refused too, the edit is damaged: fit it again."
            )
