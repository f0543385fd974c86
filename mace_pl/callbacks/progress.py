"""A progress bar that says which stage and which concepts a run is at."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from mace_pl.callbacks.protocols import ErasureModule

SHOWN = 3  # concepts that the bar names before it counts the rest


class StageProgress(RichProgressBar):
    """Lightning's rich bar with the stage and the concepts of the step before the loss."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Stage, concepts, their step, and what the module logs."""
        module = cast(ErasureModule, pl_module)
        names = module.current()
        more = f" +{len(names) - SHOWN}" if len(names) > SHOWN else ""
        shown: dict[str, Any] = {"stage": "train", "concepts": ", ".join(names[:SHOWN]) + more}
        logged = super().get_metrics(trainer, pl_module)
        return shown | {name: value for name, value in logged.items() if name != "v_num"}
