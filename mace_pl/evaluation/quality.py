"""FID, KID and mean distance of a run's preserved names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.evaluation.fid import compare
from mace_pl.evaluation.run_scores import Tables
from mace_pl.images.files import read_images


def generated_features(tables: Tables, places: list[int]) -> Tensor:
    """[N, D] of the images of some words that were generated."""
    return tables["features"][places][tables["generated"][places] > 0]


def reference_features(files: Sequence[Path], features: Any) -> Tensor | None:
    """[N, D] of the reference folder's images on the CPU; None without any.

    Args:
        files: the images.
        features: a :class:`mace_pl.evaluation.fid.Extractor`.
    """
    batches = [files[i : i + 50] for i in range(0, len(files), 50)]
    parts = [features(read_images(batch, "model.reference"))[0].cpu() for batch in batches]
    return torch.cat(parts) if parts else None


def run_quality(
    original: Tables, edited: Tables, preserved: list[int], reference: Tensor | None, subset: int
) -> dict[str, Any]:
    """``fid``, ``kid`` and ``distance`` of preserved names, against the reference or the original.

    Args:
        original: tables of the original.
        edited: tables of the edit.
        preserved: the names, by index.
        reference: features of the reference.
        subset: images in each of KID's subsets.
    """
    before, after = (generated_features(tables, preserved) for tables in (original, edited))
    quality: dict[str, Any] = compare(before if reference is None else reference, after, subset)
    distances = edited["distance"][preserved][edited["generated"][preserved] > 0]
    quality["distance"] = float(distances.mean()) if len(distances) else None
    return quality
