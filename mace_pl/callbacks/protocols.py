"""What callbacks ask of the modules of a run, which the layers above make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from mace_pl.hardening.settings import Hardening
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.edit import Edit
from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.methods.metrics import GramMetric
from mace_pl.models.on_device import OnDevice
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.stages.fuse import Trained
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import Refined
from mace_pl.stages.train import ConceptState, Objective
from mace_pl.training.sharding import Share


class ErasureModule(Protocol):
    """The module of a run, such as ConceptErasure.

    Attributes:
        method: the closed form.
        pipeline: the model that is edited.
        placed: it, on the device of the Trainer or off it.
        source: the files that it was read from.
        seed: of the run.
        rank: of each LoRA.
        wanted: what is preserved.
        objective: how a step is sampled.
        fingerprint: of the text encoders.
        unet_hash: of the original UNet.
        loras: of stage 2 while they are in place; None where nothing is trained.
        refined: what stage 1 leaves; None before.
        trained: what stage 2 leaves; None before.
        edit: the whole edit; None before.
        original: the weights that it may change, before, by layer name, on the CPU; empty before.
        hardening: how the edit is hardened; None where it is not.
        share: what this rank trains.
        losses: of each step of its concepts, by target.
        done: the steps of each concept that an interrupted run has finished, by its number.
    """

    method: ClosedForm
    pipeline: Pipeline
    placed: OnDevice
    source: Source
    seed: int
    rank: int
    wanted: Preserving
    objective: Objective
    fingerprint: str
    unet_hash: str
    loras: ConceptLoRAs | None
    refined: Refined | None
    trained: Trained | None
    edit: Edit | None
    original: dict[str, Tensor]
    hardening: Hardening | None
    share: Share
    losses: dict[str, list[float]]
    done: dict[int, int]

    def take_names(self, chosen: Mapping[str, tuple[float, float]]) -> None:
        """Preserve these names, which were chosen for the run; by name its size and how far it would move."""

    def begin(self) -> None:
        """Check the concepts and move the pipeline to the device, once; before anything is generated."""

    def current(self) -> list[str]:
        """The targets of this step."""

    def identity_of(self, concept: int) -> dict[str, str]:
        """Hashes of all inputs on which the training of a concept depends, by what they are."""

    def state_of(self, concept: int) -> ConceptState:
        """A concept in training, to be saved."""

    def take_edit(self, edit: Edit, original: dict[str, Tensor]) -> None:
        """The edit with its hardening, and the weights that it changes as they were."""

    def resume(self, concept: int, state: ConceptState) -> None:
        """Resume a concept from what was saved."""


class StatisticsModule(Protocol):
    """The module that sums embeddings of captions, such as PromptStatistics.

    Attributes:
        fingerprint: of the text encoders.
        pooled: the sums of pooled embeddings; None where the model has none.
        statistics: the sums over all ranks, with ``gram``, ``captions`` and ``tokens``; empty before the end.
    """

    fingerprint: str
    pooled: GramMetric | None
    statistics: Mapping[str, Tensor]

    def states(self) -> dict[str, Tensor]:
        """The sums of this rank so far, to be saved."""

    def resume(self, states: Mapping[str, Tensor]) -> None:
        """Start from sums that were saved."""
