"""Write the run into its output folder when training has ended; an existing folder is refused before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.before_after import BeforeAfter
from mace_pl.export.base_model import base_file
from mace_pl.export.formats import PLACES, Finished, check_formats
from mace_pl.export.metadata import safe_name
from mace_pl.export.run_base import base_kinds
from mace_pl.export.single_file import check_single_file
from mace_pl.files.artifacts import claim_output, write_json, written_aside
from mace_pl.files.paths import model_name
from mace_pl.files.screen import screen
from mace_pl.methods.edit import save_concept
from mace_pl.models.pipeline import relative_to_project


class WriteRun(Callback):
    """Writes everything that a run leaves behind, aside and renamed, on one rank.

    Args:
        output_dir: the run's folder.
        seen: the callback whose images and scores become the report.
        config: the complete configuration, written as ``config.yaml``.
        overwrite: replace the folder where it exists.
        save_pipeline: write the whole diffusers pipeline too; false takes it out of ``export``.
        export: ``pipeline``, ``lora``, ``lora_diffusers``, ``lora_peft``, ``single_file``, ``unet``; ``edit`` and
            ``refined`` are always written. None writes the form of the base: ``single_file`` where it is a single
            checkpoint, else ``pipeline``.

    Attributes:
        written: whether the run is there.

    Raises:
        UserError: a format does not exist, or ``output_dir`` exists.
    """

    def __init__(
        self,
        output_dir: str,
        seen: BeforeAfter,
        config: dict[str, Any],
        overwrite: bool = False,
        save_pipeline: bool = True,
        export: list[str] | None = None,
    ) -> None:
        self.folder, self.seen, self.config = Path(output_dir), seen, config
        check_formats(export or [], "export")
        self.export, self.save_pipeline = export, save_pipeline
        self.written = False
        claim_output(self.folder, overwrite)

    def formats(self, pipeline: Any) -> list[str]:
        """What is written beside edit and refined weights."""
        own_form = "single_file" if base_file(pipeline) else "pipeline"
        formats = [own_form] if self.export is None else self.export
        return [name for name in formats if self.save_pipeline or name != "pipeline"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a model that a format cannot hold."""
        if "single_file" in self.formats(pl_module.pipeline):
            check_single_file(pl_module.pipeline)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the run and say where it lies."""
        if trainer.is_global_zero:
            module: Any = pl_module
            with written_aside(self.folder, "output_dir") as aside:
                aside.mkdir()
                self.write(aside, module)
            self.written = True
            self.show(module)

    def write(self, folder: Path, module: Any) -> None:
        """All files of the run."""
        meta = {"pretrained": model_name(module.pretrained), "text_encoder": module.fingerprint}
        meta |= {"unet": module.unet_hash, "seed": module.seed, "base": base_kinds(self.config.get("model", {}))}
        given = module.data.concepts
        concepts = [{"target": c.target, "anchor": c.anchor, "kind": c.kind} for c in given]
        (folder / "config.yaml").write_text(
            yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        for c in given:
            factors = module.trained.factors.get(c.target, {})
            save_concept(folder, c.target, module.refined.sums[c.target], factors, meta | {"target": c.target})
        if self.seen.report is not None:
            self.seen.report.write(folder / "report", module.trained.losses)
            write_json(folder / "report" / "preflight.json", self.seen.tokens)
        original = {name: weight.cpu() for name, weight in module.refined.original.items()}
        metrics = folder / "report" / "metrics.json"
        meta, name = meta | {"concepts": concepts}, safe_name(self.folder)
        finished = Finished(module.pipeline, module.edit, original, meta, self.config, name, metrics)
        for form in dict.fromkeys(("edit", "refined", *self.formats(module.pipeline))):
            finished.write(form, folder / PLACES[form])

    def show(self, module: Any) -> None:
        """What was erased, and where it lies."""
        console = screen()
        if self.seen.report is not None:
            self.seen.report.show(module.trained.losses, console)
        folder = relative_to_project(self.folder)
        for path in sorted(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            console.print(f"{folder}/{path.name}{'/' if path.is_dir() else ''}", highlight=False)
