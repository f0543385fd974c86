"""Images of the model before and after the edit, and the table of tokens that is shown before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.report import MAX_COLUMNS, SHOWN, Report
from mace_pl.concepts.anchors import nearest
from mace_pl.concepts.concept import read_names
from mace_pl.concepts.token_report import preflight, show_preflight
from mace_pl.errors import Stopped, UserError
from mace_pl.files.screen import screen
from mace_pl.images.protocols import RunData
from mace_pl.models.text_encoding import names_beside
from mace_pl.stages.estimate import Estimator, Planned, disk_free
from mace_pl.stages.preflight import check_solvable, show_chosen, show_estimates, warned
from mace_pl.tuning.prompts import most_images

MOST_SEEDS = 1000  # images of each name, far more than a share needs; their seeds are kept in memory


def check_seeds(seeds: int) -> None:
    """Refuse a number of images per name that no report has.

    Raises:
        UserError: it is below 0 or above :data:`MOST_SEEDS`.
    """
    if not 0 <= seeds <= MOST_SEEDS:
        raise UserError(
            f"report_seeds={seeds} must be from 0, which generates no images for the report, to {MOST_SEEDS}."
        )


def next_to(module: ErasureModule, targets: Sequence[str], count: int) -> list[str]:
    """So many of the names that a module preserves, those nearest to the targets, where damage shows first."""
    names = names_beside(module.pipeline, module.wanted.names, targets) if count else []
    return [names[i] for i in nearest(module.pipeline, names, targets, count)] if names else []


class BeforeAfter(Callback):
    """Generates the report's images, each rank a share: of the original model in ``setup``, of the edited one at the
    end.

    Args:
        preserved: names to preserve, shown and scored beside the targets; when None those of the module's that are next
            to the targets, as many as there is room for in the image.
        classifier: folder of the CLIPModel that scores the images before and after; no scores when None.
        seeds: images per name, before and after; 0 generates none.
        output_dir: where the run is going to be written, for the disk that is free there.
        save_pipeline: whether the whole pipeline is written.
        dry_run: end the run when all is said; images are generated only where a classifier scores them.
        trials: of the search behind the run; 0 without one.

    Attributes:
        report: the images and scores; None before ``setup``.
        tokens: the rows of the table of tokens.

    Raises:
        UserError: ``report_seeds`` is below 0 or above 1000.
    """

    def __init__(
        self,
        preserved: list[str] | None = None,
        classifier: str | None = None,
        seeds: int = 1,
        output_dir: str = ".",
        save_pipeline: bool = True,
        dry_run: bool = False,
        trials: int = 0,
    ) -> None:
        check_seeds(seeds)
        self.given, self.classifier, self.seeds = preserved, classifier, seeds
        self.preserved = read_names(preserved, "kept")
        self.output, self.save_pipeline, self.dry_run, self.trials = Path(output_dir), save_pipeline, dry_run, trials
        self.report: Report | None = None
        self.tokens: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What the run takes, the model as it was, and the table of tokens.

        Raises:
            UserError: what a dry run finds too: a closed form that cannot be solved.
            Stopped: the dry run is done.
        """
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        module = cast(ErasureModule, pl_module)
        module.begin()
        targets = [c.target for c in data.concepts]
        preserved = names_beside(module.pipeline, self.preserved, targets)
        if self.preserved and not preserved and trainer.is_global_zero:
            screen().print("kept: all of its names are erased, so that the report shows no other.", highlight=False)
        elif trainer.is_global_zero and (erased := [n for n in self.preserved if n in targets]):
            screen().print(f"kept: {', '.join(erased)} is erased, and no name to show beside.", highlight=False)
        if self.given is None:
            room = MAX_COLUMNS - len(targets) if self.seeds else 0
            preserved = next_to(module, targets, max(0, min(SHOWN, room)))
        styles = module.wanted.styles_among(preserved)
        self.report = Report(data.concepts, preserved, self.classifier, self.seeds, styles, stores=not self.dry_run)
        if trainer.is_global_zero:
            self.show_plan(module, data, self.report)
        if self.classifier or not self.dry_run:
            self.report.look("before", module, trainer)
        if trainer.is_global_zero:
            seen = self.report.accuracy.get("before", {})
            names = [*self.preserved, *module.wanted.names]
            beside = names_beside(module.pipeline, names, targets)
            self.tokens = preflight(module.pipeline, data.concepts, data.templates, beside, seen)
            show_preflight(self.tokens, screen())
            show_chosen(module.wanted, screen())
            known = {*module.wanted.styles, *module.wanted.prompted}
            for line in warned(module.pipeline, data.concepts, names, known):
                screen().print(line, highlight=False)
        if self.dry_run:
            check_solvable(module.pipeline, data.concepts, data.templates, module.method, module.wanted)
            raise Stopped("The closed forms can be solved. Nothing was written: the run was dry.")

    def show_plan(self, module: ErasureModule, data: RunData, report: Report) -> None:
        """What each stage takes, and the disk."""
        scored = len(module.wanted.names) or len(self.preserved)
        planned = Planned(
            data,
            module.method,
            module.rank,
            module.seed,
            len(module.wanted.names) + len(module.wanted.vocabulary),
            len(report.prompts) * self.seeds,
            module.objective.checkpointing,
            self.save_pipeline,
            report.ready(module, data),
            None if module.hardening is None else module.hardening.passes(len(data.concepts)),
            most_images({c.target: c.kind for c in data.concepts}, scored, self.trials) if self.trials else 0,
        )
        found = Estimator(module.pipeline, planned)
        show_estimates(found.stages(), (found.disk(), disk_free(self.output)), screen())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The edited model."""
        module = cast(ErasureModule, pl_module)
        if self.report is not None:
            module.placed.enter(trainer.strategy.root_device)
            self.report.look("after", module, trainer)
