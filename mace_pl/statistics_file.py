"""Read the statistics of captions: one Gram matrix, checked against the encoder that will use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.artifacts import read_tensors

KIND = "statistics"


def read_statistics(path: Path, fingerprint: str, width: int, setting: str) -> tuple[Tensor, int, dict[str, Any]]:
    """Read a file that the ``cache`` command wrote.

    Args:
        path: the ``.safetensors`` file.
        fingerprint: ``mace_pl.text.encoder_fingerprint`` of the pipeline that will use the sums.
        width: D, the width of that pipeline's text embeddings.
        setting: the option that named the file, for error messages.

    Returns:
        The Gram matrix [D, D] in float64, the number of tokens in it, and the provenance.

    Raises:
        ValueError: no statistics file, truncated, a pickle, not finite, of another encoder, or of another shape.
    """
    tensors, metadata = read_tensors(path, KIND, setting, {"gram": (-1, -1)})
    again = "Make it again with `python erase.py cache`, --model.pretrained being the same pipeline."
    if metadata.get("encoder") != fingerprint:
        raise ValueError(
            f"{setting}: {path} belongs to another text encoder (fingerprint {str(metadata.get('encoder'))[:12]}, this "
            f"pipeline has {fingerprint[:12]}). {again}"
        )
    gram = tensors["gram"]
    if tuple(gram.shape) != (width, width) or gram.dtype != torch.float64:
        raise ValueError(
            f"{setting}: {path} has gram of shape {tuple(gram.shape)} and {gram.dtype}, expected {(width, width)} and "
            f"torch.float64. {again}"
        )
    tokens = metadata.get("tokens")
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"{setting}: {path} counts {tokens!r} tokens, expected a positive number. {again}")
    return gram, tokens, metadata
