"""Write the edit into the output folder when training has ended; an existing folder is refused before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from mace_pl.artifacts import claim_output, write_json, written_aside
from mace_pl.callbacks.report import Report
from mace_pl.concepts import read_names
from mace_pl.edit import save_concept
from mace_pl.errors import UserError
from mace_pl.export.base import base_file
from mace_pl.export.described import safe_name
from mace_pl.export.finished import PLACES, Finished, check_formats
from mace_pl.export.single_file import check_single_file
from mace_pl.paths import model_name
from mace_pl.pipelines import relative_to_project
from mace_pl.preflight import preflight, show_preflight
from mace_pl.run_base import base_kinds
from mace_pl.screen import screen
from mace_pl.text import names_beside


class Export(Callback):
    """Writes everything a run leaves behind.

    Args:
        output_dir: the run's folder.
        overwrite: replace it where it exists.
        save_pipeline: write the whole diffusers pipeline too; false takes it out of ``export``.
        export: ``pipeline``, ``lora``, ``lora_diffusers``, ``lora_peft``, ``single_file``, ``unet``; ``edit`` and
            ``refined`` are always written. None writes the form of the base: ``single_file`` where it is a single
            checkpoint, else ``pipeline``.
        kept: names that are shown and scored beside the erased ones.
        classifier: folder of the CLIPModel that scores the pictures before and after; no scores when None.
        report_seeds: pictures per name, before and after.
        config: the complete configuration, written as ``config.yaml``.

    Raises:
        UserError: ``report_seeds`` is below 1, a format does not exist, or ``output_dir`` exists.
    """

    def __init__(
        self,
        output_dir: str,
        overwrite: bool = False,
        save_pipeline: bool = True,
        kept: list[str] | None = None,
        classifier: str | None = None,
        report_seeds: int = 1,
        config: dict[str, Any] | None = None,
        export: list[str] | None = None,
    ) -> None:
        if report_seeds < 1:
            raise UserError(f"report_seeds={report_seeds} must be at least 1.")
        self.folder = Path(output_dir)
        self.overwrite = overwrite
        check_formats(export or [], "export")
        self.export, self.save_pipeline = export, save_pipeline
        self.formats: list[str] = []
        self.kept = read_names(kept, "kept")
        self.classifier, self.seeds = classifier, report_seeds
        self.config = config or {}
        self.written = False
        claim_output(self.folder, overwrite)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the pictures of the model as it was."""
        own_form = "single_file" if base_file(pl_module.pipeline) else "pipeline"
        formats = [own_form] if self.export is None else self.export
        self.formats = [name for name in formats if self.save_pipeline or name != "pipeline"]
        if "single_file" in self.formats:
            check_single_file(pl_module.pipeline)
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            kept = names_beside(pl_module.pipeline, self.kept, [c.target for c in data.concepts])
            self.report = Report(data.concepts, kept, self.classifier, self.seeds)
            self.report.look("before", pl_module, trainer)
            seen = self.report.accuracy.get("before", {})
            self.rows = preflight(pl_module.pipeline, data.concepts, data.templates, kept, seen)
            show_preflight(self.rows, screen())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the run, aside and renamed, on one process."""
        if trainer.is_global_zero:
            module: Any = pl_module
            self.report.look("after", module, trainer)
            with written_aside(self.folder, "output_dir") as aside:
                aside.mkdir()
                self.write(aside, module)
            self.written = True
            self.show(module)

    def write(self, folder: Path, module: Any) -> None:
        """All files of the run."""
        meta = {"pretrained": model_name(module.pretrained), "text_encoder": module.fingerprint}
        meta |= {"unet": module.unet_hash, "seed": module.seed, "base": base_kinds(self.config.get("model", {}))}
        concepts = [{"target": c.target, "anchor": c.anchor, "kind": c.kind} for c in module.concepts]
        (folder / "config.yaml").write_text(
            yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        for c in module.concepts:
            save_concept(folder, c.target, module.sums[c.target], module.factors[c.target], meta | {"target": c.target})
        self.report.write(folder / "report", module.losses)
        write_json(folder / "report" / "preflight.json", self.rows)
        original = {name: weight.cpu() for name, weight in module.original.items()}
        metrics = folder / "report" / "metrics.json"
        meta, name = meta | {"concepts": concepts}, safe_name(self.folder)
        finished = Finished(module.pipeline, module.edit, original, meta, self.config, name, metrics)
        for name in dict.fromkeys(("edit", "refined", *self.formats)):
            finished.write(name, folder / PLACES[name])

    def show(self, module: Any) -> None:
        """What was erased, and where it lies."""
        console = screen()
        self.report.show(module.losses, console)
        folder = relative_to_project(self.folder)
        for path in sorted(self.folder.iterdir()):
            console.print(f"{folder}/{path.name}{'/' if path.is_dir() else ''}", highlight=False)
