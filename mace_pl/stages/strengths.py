"""Erasure strengths: the sums of targets that are erased in part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mace_pl.methods.edit import ConceptSums
from mace_pl.training.tensor_store import TensorStore


class Changes:
    """F_i − G_i of each concept in files, by which G of other strengths than 1 differs."""

    def __init__(self) -> None:
        self.store = TensorStore()
        self.places: dict[str, tuple[int, int]] = {}

    def add(self, target: str, sums: ConceptSums) -> None:
        """Write a concept's."""
        pooled = sums.F_pooled - sums.G_pooled
        self.places[target] = self.store.add(sums.F - sums.G), self.store.add(pooled)

    def weighted(self, total: ConceptSums, strengths: Mapping[str, float]) -> ConceptSums:
        """G of strengths w: Σ w G_i + (1 − w) F_i = Σ G_i + Σ (1 − w)(F_i − G_i).

        Args:
            total: the sums over all targets at full strength.
            strengths: w by target.
        """
        G, G_pooled = total.G.clone(), total.G_pooled.clone()
        for target, weight in strengths.items():
            if weight != 1:
                change, pooled = (self.store[place] for place in self.places[target])
                G.add_(change, alpha=1 - weight)
                G_pooled.add_(pooled, alpha=1 - weight)
        return replace(total, G=G, G_pooled=G_pooled)
