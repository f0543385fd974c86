"""The edit as a value: its statistics and LoRAs, fused, applied to a UNet, written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.methods.closed_form import Preservation, apply_columns, apply_edit, gram, refine
from mace_pl.methods.lora import from_peft, to_peft
from mace_pl.models.attention_layers import reads_image_only
from mace_pl.models.cross_attention import is_value
from mace_pl.models.pooled_text import is_pooled
from mace_pl.training.tensor_store import TensorStore

Factors = dict[str, tuple[Tensor, Tensor]]

TOGETHER = 1024  # tokens of several concepts that are summed at once; larger blocks leave holes in the memory

NONE = torch.zeros(0, dtype=torch.float64)  # sums that a run does not have

STAGE2 = "stage2"  # kind of the files with what stage 2 trained, which on the base model is not the edit
STAGE2_PREFIX = "mace_stage2."  # no loader of LoRAs knows it, and diffusers refuses names without "lora"


@dataclass(frozen=True)
class ConceptSums:
    """F and G of stage 1 and F of stage 3 for one concept, [D, D] each in float64.

    ``pairs`` [] counts the pairs of tokens in F and G. A concept without an anchor has zeros for G, a method that
    trains nothing zeros for F_all. ``F_pooled``, ``G_pooled`` [E, E] and ``pooled_pairs`` [] are the same as F, G and
    ``pairs`` of the prompts' pooled embeddings; empty where these are not edited.
    """

    F: Tensor
    G: Tensor
    F_all: Tensor
    pairs: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    F_pooled: Tensor = NONE
    G_pooled: Tensor = NONE
    pooled_pairs: Tensor = NONE

    def weighted(self, weight: float) -> ConceptSums:
        """Erasure strength in [0, 1]: at 1 the tokens are mapped to the anchor's, at 0 they are preserved."""
        pooled = weight * self.G_pooled + (1 - weight) * self.F_pooled
        return replace(self, G=weight * self.G + (1 - weight) * self.F, G_pooled=pooled)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is written of them: all that are there."""
        return {name: own for name, own in vars(self).items() if own.numel()}


@dataclass(frozen=True)
class Pairs:
    """The tokens that a closed form pairs, of one concept or of several; their Gram matrices are its sums.

    Attributes:
        target: K tokens of the targets' prompts, [K, D].
        anchor: those of the anchors'; zeros where a method has none.
        pooled_target: the pooled embeddings of P prompts of the targets, [P, E]; None where these are not edited.
        pooled_anchor: those of the anchors.
    """

    target: Tensor
    anchor: Tensor
    pooled_target: Tensor | None = None
    pooled_anchor: Tensor | None = None

    @property
    def few(self) -> bool:
        """Whether they take less room than their sums: 2·K·D values of 4 bytes, where F and G are 2·D² of 8."""
        return len(self.target) < 2 * self.target.shape[1]

    def sums(self) -> ConceptSums:
        """F and G; those of pooled embeddings too, where there are some."""
        target, anchor = self.target, self.anchor
        found = ConceptSums(
            gram(target, target), gram(anchor, target), NONE.new_zeros(2 * target.shape[1:]), counted(target)
        )
        if self.pooled_target is None or self.pooled_anchor is None:
            return found
        F, G = gram(self.pooled_target, self.pooled_target), gram(self.pooled_anchor, self.pooled_target)
        return replace(found, F_pooled=F, G_pooled=G, pooled_pairs=counted(self.pooled_target))


def counted(rows: Tensor) -> Tensor:
    """The number of rows, as sums are kept."""
    return torch.tensor(float(len(rows)), dtype=torch.float64)


def together(pairs: Sequence[Pairs]) -> Pairs:
    """The tokens of several concepts as those of one: their sums are the sums of both."""
    pooled_targets = [one.pooled_target for one in pairs if one.pooled_target is not None]
    pooled_anchors = [one.pooled_anchor for one in pairs if one.pooled_anchor is not None]
    pooled = (torch.cat(pooled_targets), torch.cat(pooled_anchors)) if pooled_targets else (None, None)
    return Pairs(torch.cat([one.target for one in pairs]), torch.cat([one.anchor for one in pairs]), *pooled)


@dataclass(frozen=True)
class Edit:
    """W* = W R + B A of every key and value, and W + B' A' of any projection of attention where the edit is hardened.

    Attributes:
        R: [D, D] shared by all layers.
        factors: (A [K, D], B [O, K]) by layer name: fused LoRAs, or what a closed form has per layer.
        values_only: R is for the values alone; the keys have no R.
        pooled: T [E, E] of the layer that reads SDXL's pooled text: its first E columns are W T, the others, of image
            sizes, stay. None where it is not edited.
        hardening: (A' [R, D], B' [O, R]) by layer name, on top of all that; empty where the edit is not hardened. It
            lies in a file of its own, so that it can be taken off again.
    """

    R: Tensor
    factors: Factors = field(default_factory=dict)
    values_only: bool = False
    pooled: Tensor | None = None
    hardening: Factors = field(default_factory=dict)

    def weights(self, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The edited weights by layer name, in the dtype and on the device of the originals.

        Args:
            original: by name; the layer of pooled text is left out where it is not edited. Other layers than keys and
                values change by the hardening alone.
        """
        identity = torch.eye(len(self.R), dtype=self.R.dtype)
        found: dict[str, Tensor] = {}
        for name, W in original.items():
            if is_pooled(name):
                found |= {} if self.pooled is None else {name: apply_columns(W, self.pooled)}
                continue
            R = identity if self.values_only and not is_value(name) else self.R
            if reads_image_only(name):
                R = torch.eye(W.shape[1], dtype=torch.float64)
            A, B = self.lora(name, W)
            found[name] = apply_edit(W, R.to(W.device), A.to(W.device), B.to(W.device))
        return found

    def lora(self, name: str, W: Tensor) -> tuple[Tensor, Tensor]:
        """A [K, D] and B [O, K] of all that is added to a layer, of K = 0 where that is nothing."""
        parts = [own[name] for own in (self.factors, self.hardening) if name in own]
        if not parts:
            return W.new_zeros(0, W.shape[1]), W.new_zeros(W.shape[0], 0)
        if len(parts) == 1:
            return parts[0]
        A, B = (torch.cat([pair[i].double() for pair in parts], dim=i) for i in (0, 1))
        return A, B

    def check_finite(self, maker: str) -> None:
        """Refuse values that are not finite, in the float32 of ``edit.safetensors``.

        Args:
            maker: what made the edit, and what to change, for the message.

        Raises:
            UserError: naming the maker.
        """
        parts = [self.R, *(factor for pair in self.factors.values() for factor in pair)]
        parts += [factor for pair in self.hardening.values() for factor in pair]
        parts += [] if self.pooled is None else [self.pooled]
        if not all(bool(part.float().isfinite().all()) for part in parts):
            raise UserError(f"the edit is not finite, nothing is written: {maker}")

    def fits_pooled(self, original: Mapping[str, Tensor]) -> bool:
        """Whether the layer of pooled text is among the original weights, where it is edited."""
        columns = [W.shape[1] for name, W in original.items() if is_pooled(name)]
        return self.pooled is None or (len(columns) == 1 and len(self.pooled) <= columns[0])

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write ``edit.safetensors``: R, the fused LoRA and T of the pooled text, float32; without the hardening."""
        tensors = {"R": self.R.float()} | {k: v.float() for k, v in to_peft(self.factors).items()}
        tensors |= {} if self.pooled is None else {"pooled": self.pooled.float()}
        write_tensors(path, tensors, "edit", {**metadata, "values_only": self.values_only})

    @staticmethod
    def load(path: Path) -> Edit:
        """Read ``edit.safetensors``."""
        tensors, made = read_tensors(path, "edit", "edit", {"R": (-1, -1)})
        values_only = bool(made.get("values_only", False))
        return Edit(tensors["R"], from_peft(tensors), values_only, tensors.get("pooled"))


class SumsOnDisk(Mapping[str, ConceptSums]):
    """Statistics of concepts by target in files: memory holds a few concepts at a time.

    Of a concept with few tokens these are kept in place of its sums: a vector for two matrices, where it is one token.
    """

    def __init__(self, store: TensorStore | None = None) -> None:
        self.store = TensorStore() if store is None else store
        self.places: dict[str, tuple[type[ConceptSums] | type[Pairs], dict[str, int]]] = {}

    def add(self, target: str, sums: ConceptSums | Pairs) -> None:
        """Write a concept's."""
        places = {name: self.store.add(part) for name, part in vars(sums).items() if part is not None}
        self.places[target] = (type(sums), places)

    def read(self, target: str) -> ConceptSums | Pairs:
        """What was written."""
        kind, places = self.places[target]
        return kind(**{name: self.store[place] for name, place in places.items()})

    def only(self, targets: Iterable[str]) -> SumsOnDisk:
        """Those of some targets, out of the same files."""
        found = SumsOnDisk(self.store)
        found.places = {target: self.places[target] for target in targets}
        return found

    def __getitem__(self, target: str) -> ConceptSums:
        found = self.read(target)
        return found.sums() if isinstance(found, Pairs) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def total(self) -> ConceptSums:
        """The sums over all concepts, in their order; tokens of many are summed together."""
        return summed(self.parts())

    def parts(self) -> Iterator[ConceptSums]:
        """Sums that add up to the total, one at a time."""
        waiting: list[Pairs] = []
        for target in self:
            found = self.read(target)
            if isinstance(found, Pairs):
                waiting.append(found)
            else:
                yield found
            if sum(len(own.target) for own in waiting) >= TOGETHER:
                yield together(waiting).sums()
                waiting = []
        if waiting:
            yield together(waiting).sums()


def summed(sums: Iterable[ConceptSums]) -> ConceptSums:
    """The sums over all concepts, in their order, one at a time."""
    total: dict[str, Tensor] = {}
    for concept in sums:
        for name, matrix in vars(concept).items():
            total[name] = total[name].add_(matrix) if name in total else matrix.clone()
    return ConceptSums(**total)


def refinement(sums: Mapping[str, ConceptSums], preservation: Preservation) -> Edit:
    """Stage 1 of MACE over all concepts."""
    total = summed(sums.values())
    return Edit(refine(total.F, total.G, preservation))


def read_refined(file: Path, own: Mapping[str, Tensor], setting: str) -> dict[str, Tensor]:
    """The edited keys and values by name in the network.

    Args:
        file: ``refined.safetensors``.
        own: the weights of the network that they are put into.
        setting: the option that named the file.

    Raises:
        UserError: it was made from a model of another shape, or cannot be read.
    """
    weights, _ = read_tensors(file, "refined", setting)
    wrong = [key for key, value in weights.items() if key not in own or own[key].shape != value.shape]
    if wrong:
        raise UserError(f"{setting}: {file} was made from another model: {wrong[0]} does not fit its UNet.")
    return weights
