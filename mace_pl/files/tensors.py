"""Named tensors as the content of a file: their hash, whether they can be used, and equal files for equal content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
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


def save_ordered(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Save tensors, contiguous and on the CPU, with the entries of the header in the order of their names.

    safetensors writes these in another order each time; all else in a file is decided by its content.

    Args:
        tensors: by name.
        path: the file.
        header: at least one entry.
    """
    save_file(dict(tensors), str(path), metadata=dict(header))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        parts = json.loads(file.read(length))
        parts["__metadata__"] = dict(sorted(header.items()))  # stays the first part
        ordered = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(ordered) <= length, path
        file.seek(8)
        file.write(ordered.ljust(length))
