"""Read the statistics of captions: one Gram matrix, checked against the encoder that will use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_tensors
from mace_pl.files.paths import resolve

KIND = "statistics"
AGAIN = "Make it again with `python erase.py cache`"


def load_statistics(path: Path, setting: str) -> tuple[Tensor, dict[str, Any]]:
    """Read a file of statistics whatever encoder it belongs to.

    Args:
        path: the ``.safetensors`` file.
        setting: the option that named the file, for error messages.

    Returns:
        The Gram matrix [D, D] in float64, and the provenance. Its ``tokens`` are None where the sums were imported.

    Raises:
        UserError: no statistics file, truncated, a pickle, not finite, not square, or without a number of tokens.
    """
    tensors, metadata = read_tensors(path, KIND, setting, {"gram": (-1, -1)})
    gram = tensors["gram"]
    if gram.shape[0] != gram.shape[1] or gram.dtype != torch.float64:
        raise UserError(
            f"{setting}: {path} has gram of shape {tuple(gram.shape)} and {gram.dtype}, expected a square matrix of "
            f"torch.float64. {AGAIN}."
        )
    tokens = metadata.get("tokens")
    known = isinstance(tokens, int) and tokens > 0
    if not known and not (tokens is None and "imported" in metadata):
        raise UserError(f"{setting}: {path} counts {tokens!r} tokens, expected a positive number. {AGAIN}.")
    return gram, metadata


def read_statistics(
    path: Path, fingerprint: str, width: int, setting: str
) -> tuple[Tensor, int | None, dict[str, Any]]:
    """Read a file that the ``cache`` command wrote.

    Args:
        path: the ``.safetensors`` file.
        fingerprint: ``mace_pl.models.text_encoding.encoder_fingerprint`` of the pipeline that will use the sums.
        width: D, the width of that pipeline's text embeddings.
        setting: the option that named the file, for error messages.

    Returns:
        The Gram matrix [D, D] in float64, the number of tokens in it (None where unknown), and the provenance.

    Raises:
        UserError: no statistics file, truncated, a pickle, not finite, of another encoder, or of another shape.
    """
    gram, metadata = load_statistics(path, setting)
    again = f"{AGAIN}, --model.pretrained being the same pipeline."
    if metadata.get("encoder") != fingerprint:
        raise UserError(
            f"{setting}: {path} belongs to another text encoder (fingerprint {str(metadata.get('encoder'))[:12]}, this "
            f"pipeline has {fingerprint[:12]}). {again}"
        )
    if len(gram) != width:
        raise UserError(f"{setting}: {path} has gram of shape {tuple(gram.shape)}, expected {(width, width)}. {again}")
    return gram, metadata["tokens"], metadata


def weighted_statistics(
    given: str | Mapping[str, float] | None, fingerprint: str, width: int, setting: str
) -> Tensor | None:
    """The sums of one file, or of several times their weights.

    Args:
        given: a file, files with their weights, or none.
        fingerprint: see :func:`read_statistics`.
        width: D, likewise.
        setting: the option that named the files, for error messages.

    Returns:
        [D, D] in float64, or None where nothing is given.

    Raises:
        UserError: a file that does not fit, or a weight that is negative or not finite.
    """
    weights = {given: 1.0} if isinstance(given, str) else dict(given or {})
    total = None
    for path, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{setting}: {path} has weight {weight}. Give a weight of 0 or more.")
        gram = weight * read_statistics(resolve(path), fingerprint, width, setting)[0]
        total = gram if total is None else total + gram
    return total
