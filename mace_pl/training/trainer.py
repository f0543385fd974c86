"""The Trainer with the subcommands that Lightning does not have, and the values of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy


class MaceTrainer(Trainer):
    """Lightning's Trainer with more entry points, :meth:`cache` and :meth:`attack`."""

    def cache(
        self, model: LightningModule, dataloaders: Any = None, datamodule: LightningDataModule | None = None
    ) -> None:
        """Sum the statistics of captions into one file.

        Args:
            model: the module that encodes and sums, such as ``PromptStatistics``.
            dataloaders: batches of captions; or give ``datamodule``.
            datamodule: the captions.
        """
        self.predict(model, dataloaders, datamodule, return_predictions=False)

    def attack(
        self, model: LightningModule, dataloaders: Any = None, datamodule: LightningDataModule | None = None
    ) -> None:
        """Try to bring erased targets back.

        Args:
            model: the module that generates and optimises, such as ``Attack``.
            dataloaders: batches of prompts; or give ``datamodule``.
            datamodule: the prompts.
        """
        self.test(model, dataloaders, datamodule=datamodule, verbose=False)


@dataclass(frozen=True)
class Ranks:
    """This rank among those of a run.

    Attributes:
        global_rank: its number.
        world_size: how many there are.
        strategy: broadcasts, barriers, and the device of this rank.
        shown: whether this rank shows progress bars.
    """

    global_rank: int
    world_size: int
    strategy: Strategy
    shown: bool = False


def ranks_of(trainer: Trainer) -> Ranks:
    """This rank among those of the Trainer."""
    return Ranks(trainer.global_rank, trainer.world_size, trainer.strategy, shows_progress(trainer))


def shows_progress(trainer: Trainer) -> bool:
    """Whether this rank shows bars: rank 0 does where the Trainer's are not switched off."""
    return trainer.progress_bar_callback is not None and trainer.is_global_zero


def gathered(trainer: Trainer | Ranks, value: Any) -> list[Any]:
    """The values of all ranks, on each of them."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
