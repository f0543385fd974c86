"""The edit as a value: its statistics and LoRAs, fused, applied to a UNet, written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.methods.closed_form import Preservation, apply_edit, fuse, refine
from mace_pl.methods.lora import from_peft, to_peft
from mace_pl.training.tensor_store import TensorStore

Factors = dict[str, tuple[Tensor, Tensor]]

STAGE2 = "stage2"  # kind of the files with what stage 2 trained, which on the base model is not the edit
STAGE2_PREFIX = "mace_stage2."  # no loader of LoRAs knows it, and diffusers refuses names without "lora"


@dataclass(frozen=True)
class ConceptSums:
    """F and G of stage 1 and F of stage 3 for one concept, [D, D] each in float64."""

    F: Tensor
    G: Tensor
    F_all: Tensor

    def weighted(self, weight: float) -> ConceptSums:
        """Erase to a degree: at 1 the tokens go to the anchor's, at 0 they stay what they are."""
        return replace(self, G=weight * self.G + (1 - weight) * self.F)


@dataclass(frozen=True)
class Edit:
    """R [D, D] shared by all layers and, per layer, the fused LoRA (A* [n·r, D], B [O, n·r]); no LoRA where none is."""

    R: Tensor
    factors: Factors

    def weights(self, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The edited projections by layer name, in the dtype of the originals."""
        none = {name: (W.new_zeros(0, W.shape[1]), W.new_zeros(W.shape[0], 0)) for name, W in original.items()}
        return {name: apply_edit(W, self.R, *(none | dict(self.factors))[name]) for name, W in original.items()}

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write ``edit.safetensors``: R and the fused LoRA, float32."""
        tensors = {"R": self.R.float()} | {k: v.float() for k, v in to_peft(self.factors).items()}
        write_tensors(path, tensors, "edit", metadata)

    @staticmethod
    def load(path: Path) -> Edit:
        """Read ``edit.safetensors``."""
        tensors, _ = read_tensors(path, "edit", "edit", {"R": (-1, -1)})
        return Edit(tensors["R"], from_peft(tensors))


class SumsOnDisk(Mapping[str, ConceptSums]):
    """Statistics of concepts by target in a file: memory holds one concept at a time."""

    def __init__(self) -> None:
        self.store = TensorStore()
        self.places: dict[str, list[int]] = {}

    def add(self, target: str, sums: ConceptSums) -> None:
        """Write a concept's."""
        self.places[target] = [self.store.add(matrix) for matrix in vars(sums).values()]

    def __getitem__(self, target: str) -> ConceptSums:
        return ConceptSums(*(self.store[place] for place in self.places[target]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def summed(sums: Iterable[ConceptSums]) -> ConceptSums:
    """The sums over all concepts, in their order, one at a time."""
    total: dict[str, Tensor] = {}
    for own in sums:
        for name, matrix in vars(own).items():
            total[name] = total[name].add_(matrix) if name in total else matrix.clone()
    return ConceptSums(**total)


def refinement(sums: Mapping[str, ConceptSums], keep: Preservation) -> Tensor:
    """Stage 1 over all concepts: T [D, D]."""
    total = summed(sums.values())
    return refine(total.F, total.G, keep)


def fusion(T: Tensor, sums: Mapping[str, ConceptSums], loras: Mapping[str, Factors], keep: Preservation) -> Edit:
    """Stage 3 over all concepts, one at a time. ``loras``: by target, then by layer, (A [r, D], B [O, r])."""
    fused = fuse(T, summed(sums.values()).F_all, keep)
    layers = list(next(iter(loras.values())))
    A: dict[str, list[Tensor]] = {name: [] for name in layers}
    for target, s in sums.items():
        own = [loras[target][name][0].cpu() for name in layers]
        rows = fused.fused(torch.cat(own), s.F_all).split([len(a) for a in own])
        for name, part in zip(layers, rows, strict=True):
            A[name].append(part)
    B = {name: torch.cat([loras[target][name][1].double().cpu() for target in sums], dim=1) for name in layers}
    return Edit(fused.R, {name: (torch.cat(A[name]), B[name]) for name in layers})
