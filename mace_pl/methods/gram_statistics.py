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
POOLED = "pooled"  # the sums Σ p pᵀ [E, E] of pooled embeddings, which only files of SDXL's encoders have
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
    total = None
    for path, weight in files_of(given).items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{setting}: {path} has weight {weight}. Give a weight of 0 or more.")
        gram = weight * read_statistics(resolve(path), fingerprint, width, setting)[0]
        total = gram if total is None else total + gram
    return total


def files_of(given: str | Mapping[str, float] | None) -> dict[str, float]:
    """The files of a setting with their weights: one file, several, or none."""
    return {given: 1.0} if isinstance(given, str) else dict(given or {})


def load_pooled(path: Path, setting: str) -> Tensor | None:
    """The sums of pooled embeddings [E, E] in float64 of a file of statistics; None where it has none.

    Raises:
        UserError: as :func:`load_statistics`.
    """
    found = read_tensors(path, KIND, setting)[0].get(POOLED)
    if found is not None and (found.ndim != 2 or found.shape[0] != found.shape[1] or found.dtype != torch.float64):
        raise UserError(f"{setting}: {path} has pooled sums of shape {tuple(found.shape)} and {found.dtype}. {AGAIN}.")
    return found


def pooled_statistics(
    given: str | Mapping[str, float] | None, width: int, setting: str
) -> tuple[Tensor | None, list[str]]:
    """The pooled sums of one file, or of several times their weights; :func:`weighted_statistics` checks the files.

    Args:
        given: a file, files with their weights, or none.
        width: E.
        setting: the option that named the files.

    Returns:
        [E, E] in float64, or None where there are none; and the files that have no such sums.

    Raises:
        UserError: sums of another width.
    """
    total, lacking = None, []
    for path, weight in files_of(given).items():
        found = load_pooled(resolve(path), setting)
        if found is None:
            lacking.append(f"{setting}={path}")
            continue
        if len(found) != width:
            raise UserError(f"{setting}: {path} has pooled sums of width {len(found)}, expected {width}. {AGAIN}.")
        total = weight * found if total is None else total + weight * found
    return total, lacking
