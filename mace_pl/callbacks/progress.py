"""A progress bar that says which stage and which concepts a run is at."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mace_pl.callbacks.protocols import ErasureModule

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
