"""Images of the model before and after the edit, and the table of tokens that is shown before anything is trained."""

from __future__ import annotations

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.report import Report
from mace_pl.concepts.concept import read_names
from mace_pl.concepts.token_report import check_prompts, preflight, show_preflight
from mace_pl.errors import UserError
from mace_pl.files.screen import screen
from mace_pl.images.protocols import RunData
from mace_pl.models.text_encoding import names_beside
from mace_pl.stages.refine import check_anchors


class BeforeAfter(Callback):
    """Generates the report's images, each rank a share: of the original model in ``setup``, of the edited one at the
    end.

    Args:
        preserved: names to preserve, shown and scored beside the targets.
        classifier: folder of the CLIPModel that scores the images before and after; no scores when None.
        seeds: images per name, before and after; 0 generates none.

    Attributes:
        report: the images and scores; None before ``setup``.
        tokens: the rows of the table of tokens.

    Raises:
        UserError: ``report_seeds`` is below 0.
    """

    def __init__(self, preserved: list[str] | None = None, classifier: str | None = None, seeds: int = 1) -> None:
        if seeds < 0:
            raise UserError(f"report_seeds={seeds} must be at least 0, which generates no images for the report.")
        self.preserved, self.classifier, self.seeds = read_names(preserved, "kept"), classifier, seeds
        self.report: Report | None = None
        self.tokens: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The model as it was, and the table of tokens."""
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        module = cast(ErasureModule, pl_module)
        check_anchors(module.method, data.concepts)  # this and the next before any image is generated
        check_prompts(module.pipeline, data.concepts, data.templates)
        module.pipeline.to(trainer.strategy.root_device)
        preserved = names_beside(module.pipeline, self.preserved, [c.target for c in data.concepts])
        self.report = Report(data.concepts, preserved, self.classifier, self.seeds)
        self.report.look("before", module, trainer)
        if trainer.is_global_zero:
            seen = self.report.accuracy.get("before", {})
            self.tokens = preflight(module.pipeline, data.concepts, data.templates, preserved, seen)
            show_preflight(self.tokens, screen())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The edited model."""
        if self.report is not None:
            self.report.look("after", cast(ErasureModule, pl_module), trainer)
