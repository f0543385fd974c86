"""A progress bar that says which stage and which concepts a run is at, and lines in its place in a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.training.progress import said_by_tenths

SHOWN = 3  # concepts that the bar names before it counts the rest


class StageProgress(RichProgressBar):
    """Lightning's rich bar, named after the stage, with the concepts of the step before the loss."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Concepts, their step, and what the module logs."""
        module = cast(ErasureModule, pl_module)
        names = module.current()
        more = f" +{len(names) - SHOWN}" if len(names) > SHOWN else ""
        shown: dict[str, Any] = {"concepts": ", ".join(names[:SHOWN]) + more}
        logged = super().get_metrics(trainer, pl_module)
        return shown | {name: value for name, value in logged.items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the bar what it is: a run has one epoch, which says nothing."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, description="train")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar before the summary, which stands below it."""
        if self.progress is not None:
            self.progress.stop()


class SaidByTenths(Callback):
    """Says each tenth of the batches of a command in a line: in a file, a bar would be one long line.

    Args:
        command: as ``test``.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.told: Callable[[int], None] | None = None

    def begin(self, trainer: Trainer, batches: int | float | list[int | float]) -> None:
        """Count from here; nothing is said of data without a length."""
        total = sum(batches) if isinstance(batches, list) else batches
        if trainer.is_global_zero and math.isfinite(total):
            self.told = said_by_tenths(self.command, int(total), "batches")

    def advance(self) -> None:
        """A batch is done."""
        if self.told is not None:
            self.told(1)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self.begin(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self.begin(trainer, trainer.num_predict_batches)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self.advance()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self.advance()
