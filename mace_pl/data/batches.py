"""Batches that are known beforehand, as a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset


class Batches(IterableDataset[dict[str, Any]]):
    """A rank's own batches; an iterable, so that no sampler deals them out over ranks."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)
