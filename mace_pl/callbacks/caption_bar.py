"""A progress bar that counts captions."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mace_pl.data.captions import Captions


class Rate(ProgressColumn):
    """Captions per second."""

    def render(self, task: Task) -> Text:
        """The speed since the run began, without what an earlier run had done."""
        done = task.completed - task.fields["before"]
        return Text(f"{done / task.elapsed:,.1f} captions/s" if task.elapsed else "")


class CaptionBar(ProgressBar):
    """Distinct captions done, captions per second and the time left, of all ranks together."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.progress: Progress | None = None

    def disable(self) -> None:
        """Show nothing, as on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Show it again."""
        self.enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where an earlier run was cut off."""
        data: Captions = trainer.datamodule  # type: ignore[attr-defined]
        if not self.enabled or data is None:
            return
        columns = (TextColumn("captions"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self.progress = Progress(*columns)
        self.progress.start()
        total = len(data.store)
        before = min(total, data.done * trainer.world_size)
        self.progress.add_task("captions", total=total, completed=before, before=before)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by what this rank did, times the number of ranks."""
        if self.progress is not None:
            task = self.progress.tasks[0]
            done = task.completed + int(outputs) * trainer.world_size
            self.progress.update(task.id, completed=min(done, task.total or done))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar."""
        self.teardown(trainer, pl_module, "predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back, also after an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.teardown(trainer, pl_module, "predict")
