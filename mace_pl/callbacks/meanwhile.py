"""What a run shows of itself while it lasts: a file that other programs read, and images of the edit so far."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.before_after import next_to
from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.report import SHOWN, Report
from mace_pl.concepts.concept import read_names
from mace_pl.errors import Stopped, UserError, one_line
from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.files.markdown import SUMMARY
from mace_pl.files.paths import training_folder
from mace_pl.images.labelled_grid import labelled_grid
from mace_pl.images.protocols import RunData
from mace_pl.models.backbone import backbone_of
from mace_pl.models.text_encoding import names_beside
from mace_pl.stages.fuse import gather_trained
from mace_pl.stages.so_far import edited_so_far
from mace_pl.training.loggers import log_image

PROGRESS, STEPS = "progress.json", "steps"
EVERY = 1.0  # seconds between two writes of the file in one stage


class Meanwhile(Callback):
    """Writes ``progress.json`` and, if asked, rows of images in ``steps/``: beside the output folder while the run
    lasts, then in its ``report``.

    Args:
        output_dir: the run's folder.
        preserved: names to preserve that the rows show; where none are given, those next to the targets.
        every_n_steps: after how many steps of a group the edit so far generates a row; 0 for never.
        writes: whether anything is written; not by a dry run.

    Raises:
        UserError: ``every_n_steps`` is below 0.
    """

    def __init__(
        self, output_dir: str, preserved: list[str] | None = None, every_n_steps: int = 0, writes: bool = True
    ) -> None:
        if every_n_steps < 0:
            raise UserError(f"images_every_n_steps={every_n_steps} must be at least 0, which generates none.")
        self.folder = training_folder(Path(output_dir))
        self.preserved, self.every_n_steps, self.writes = read_names(preserved, "kept"), every_n_steps, writes
        self.report: Report | None = None
        self.begun, self.written = time.monotonic(), 0.0
        self.said: dict[str, Any] = {"state": "running", "stage": "prepare", "step": 0, "steps": 0, "loss": None}

    # --- the file ------------------------------------------------------------------------------------------------

    def say(self, trainer: Trainer, force: bool = True, **news: Any) -> None:
        """Write the file with what is new; within a stage now and then."""
        self.said |= news
        if trainer.is_global_zero and self.writes and (force or time.monotonic() - self.written >= EVERY):
            write_json(self.folder / PROGRESS, self.content())
            self.written = time.monotonic()

    def content(self, **news: Any) -> dict[str, Any]:
        """What the file holds."""
        now = {"seconds": round(time.monotonic() - self.begun, 1), "updated": datetime.now(UTC).isoformat()}
        return {**self.said, **now, "process": os.getpid(), **news}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run has begun."""
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        self.say(trainer, targets=[concept.target for concept in data.concepts])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row of names; and that the training begins."""
        module = cast(ErasureModule, pl_module)
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        targets = [concept.target for concept in data.concepts]
        preserved = names_beside(module.pipeline, self.preserved, targets) or next_to(module, targets, SHOWN)
        preserved = preserved[:SHOWN]
        styles = module.wanted.styles_among(preserved)
        self.report = Report(data.concepts[:SHOWN], preserved, None, 1, styles)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing of an earlier run stays that this one does not resume."""
        module = cast(ErasureModule, pl_module)
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and not module.done:
            shutil.rmtree(self.folder / STEPS, ignore_errors=True)
        steps = len(module.share.concepts) * data.steps_per_concept if module.method.trains else 0
        self.say(trainer, stage="train", steps=steps, step=self.steps_of(module.losses))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """How far the run is; and images, on all ranks together: they go from batch to batch together too."""
        module = cast(ErasureModule, pl_module)
        losses = [module.losses[target][-1] for target in module.current() if module.losses.get(target)]
        loss = sum(losses) / len(losses) if losses else self.said["loss"]
        self.say(trainer, force=False, step=self.steps_of(module.losses), loss=loss)
        if self.every_n_steps and not (batch_idx + 1) % self.every_n_steps:
            self.generate(trainer, module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows is the fusion."""
        self.say(trainer, stage="fuse", step=self.steps_of(cast(ErasureModule, pl_module).losses))

    def advance(self, trainer: Trainer, done: int) -> None:
        """So many more steps of the stage."""
        self.say(trainer, force=False, step=self.said["step"] + done)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run has failed; what was refused before it trained leaves nothing."""
        if self.said["stage"] == "prepare" and isinstance(exception, UserError | Stopped):
            self.clear(trainer, images=False)
        else:
            error = f"{type(exception).__name__}: {one_line(exception)}".rstrip(": ")
            self.say(trainer, state="failed", error=error)

    @staticmethod
    def steps_of(losses: Mapping[str, list[float]]) -> int:
        """Steps of this rank's concepts, those of the run that it resumes among them."""
        return sum(map(len, losses.values()))

    # --- images --------------------------------------------------------------------------------------------------

    def generate(self, trainer: Trainer, module: ErasureModule) -> None:
        """A row of images by the edit of what is trained so far."""
        if module.loras is None or module.refined is None or self.report is None:
            return
        trained = gather_trained(trainer, module.loras, module.share, module.losses)
        step = self.steps_of({target: list(own) for target, own in trained.losses.items()})
        row = f"step {step}"
        with edited_so_far(backbone_of(module.pipeline), module.refined, module.loras, trained):
            self.report.look(row, module, trainer)
        images = self.report.images.pop(row)
        if not trainer.is_global_zero:
            return
        file = self.folder / STEPS / f"{step:06}.png"
        with written_aside(file) as aside:
            grid = labelled_grid({row: images}, self.report.prompts)
            grid.save(aside, format="PNG")
        for logger in trainer.loggers:
            log_image(logger, "edit so far", grid, step)
        self.say(trainer, images=f"{STEPS}/{file.name}")

    # --- the end -------------------------------------------------------------------------------------------------

    def write(self, report: Path) -> None:
        """Write what stays into the report of the finished run, and show it on its page."""
        if (self.folder / STEPS).is_dir():
            shutil.copytree(self.folder / STEPS, report / STEPS)
            files = sorted((report / STEPS).glob("*.png"))
            shown = "\n".join(f"![step {int(file.stem)}]({STEPS}/{file.name})" for file in files)
            with (report / SUMMARY).open("a", encoding="utf-8") as summary:
                summary.write(f"\nWhile it trained:\n\n{shown}\n")
        write_json(report / PROGRESS, self.content(state="finished"))

    def clear(self, trainer: Trainer, images: bool = True) -> None:
        """Remove what lies beside the output folder; its images only where they are asked for."""
        if trainer.is_global_zero and self.writes:
            (self.folder / PROGRESS).unlink(missing_ok=True)
            if images:
                shutil.rmtree(self.folder / STEPS, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not there, or holds other files
                self.folder.rmdir()
