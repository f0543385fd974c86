"""Write the run into its output folder when training has ended; an existing folder is refused before that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mace_pl.callbacks.before_after import BeforeAfter
from mace_pl.callbacks.harden_edit import HardenEdit
from mace_pl.callbacks.meanwhile import Meanwhile
from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.concepts.concept import AUTO
from mace_pl.errors import UserError
from mace_pl.evaluation.reach_rows import FILE as REACH
from mace_pl.export.formats import Finished, check_formats
from mace_pl.export.single_file import check_single_file
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.markdown import SUMMARY
from mace_pl.files.owned import refuse_inputs, refuse_inside
from mace_pl.files.paths import training_folder
from mace_pl.files.run_log import RunLog, logs
from mace_pl.files.screen import program, screen
from mace_pl.files.versions import ADDING
from mace_pl.hardening.report import add_to_summary
from mace_pl.images.protocols import RunData
from mace_pl.methods.edit import Edit
from mace_pl.methods.hardening import REPORT
from mace_pl.models.base_model import BaseModel
from mace_pl.models.pipeline import relative_to_project
from mace_pl.models.source import Source
from mace_pl.run import Run, inputs_of
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.reach import reach


class WriteRun(Callback):
    """Writes everything that a run leaves behind, aside and renamed, on one rank.

    Args:
        output_dir: the run's folder.
        before_after: the callback whose images and scores become the report.
        meanwhile: the callback that says how far the run is, of which something stays in the report.
        harden_edit: the callback of stage 4, where there is one.
        config: the complete configuration, written as ``config.yaml``.
        overwrite: replace the folder where it exists.
        save_pipeline: write the whole diffusers pipeline too; false takes it out of ``export``.
        export: ``pipeline``, ``lora``, ``lora_diffusers``, ``lora_peft``, ``single_file``, ``unet``; ``edit`` and
            ``refined`` are always written. None writes the form of the base: ``single_file`` where it is a single
            checkpoint, else ``pipeline``.
        log: written as ``report/run.log``; beside the output folder while the run lasts.
        last: whether nothing follows, so that what to do next is said.

    Attributes:
        run: what was written, on each rank; None before.

    Raises:
        UserError: a format does not exist, or ``output_dir`` exists or holds an input of the run.
    """

    def __init__(
        self,
        output_dir: str,
        before_after: BeforeAfter,
        meanwhile: Meanwhile,
        config: dict[str, Any],
        overwrite: bool = False,
        save_pipeline: bool = True,
        export: list[str] | None = None,
        log: RunLog | None = None,
        harden_edit: HardenEdit | None = None,
        last: bool = True,
    ) -> None:
        self.folder, self.before_after, self.config = Path(output_dir), before_after, config
        self.meanwhile = meanwhile
        check_formats(export or [], "export")
        self.export, self.save_pipeline, self.overwrite = export, save_pipeline, overwrite
        self.run: Run | None = None
        self.harden_edit, self.last = harden_edit, last
        self.run_log, self.training = log, training_folder(self.folder)
        claim_output(self.folder, overwrite)
        inputs = inputs_of(config)
        refuse_inputs(self.folder, inputs)
        if (config.get("data") or {}).get("pictures"):
            refuse_inside(Path(config["data"]["pictures"]), inputs, "data.pictures")
        if self.training.exists() and not self.training.is_dir():
            raise UserError(
                f"output_dir: {self.training} is a file, where the run leaves what it resumes from. Move it away, or "
                f"choose another --output_dir."
            )

    def formats(self, source: Source) -> list[str]:
        """What is written beside edit and refined weights."""
        own_form = "single_file" if source.file else "pipeline"
        formats = [own_form] if self.export is None else self.export
        return [name for name in formats if self.save_pipeline or name != "pipeline"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a model that a format cannot hold."""
        module = cast(ErasureModule, pl_module)
        if "single_file" in self.formats(module.source):
            check_single_file(module.pipeline)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the log from now on, for all is checked."""
        if self.run_log is not None:
            self.run_log.open(self.training, trainer.global_rank)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the run and say where it lies."""
        module = cast(ErasureModule, pl_module)
        base = BaseModel.of(self.config["model"], module.fingerprint, module.unet_hash)
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        concepts = [{"target": c.target, "anchor": c.anchor, "kind": c.kind} for c in data.concepts]
        run = Run(self.folder, base, concepts, with_choices(self.config, data, module.wanted), module.seed)
        if trainer.is_global_zero:
            with run.save(self.overwrite) as aside:
                self.write(aside, run, module)
                if self.run_log is not None:
                    self.run_log.copy(aside.report)
            if self.run_log is not None:
                self.run_log.open(run.report)
                for file in logs(self.training):
                    file.unlink()
            self.meanwhile.clear(trainer)
            self.show_result(module)
        self.run = run

    def write(self, aside: Run, run: Run, module: ErasureModule) -> None:
        """All files of the run but the configuration, into the folder aside."""
        refined, trained, edit = module.refined, module.trained, module.edit
        assert refined is not None and trained is not None and edit is not None
        for target in aside.targets:
            aside.save_concept(target, refined.sums[target], trained.factors.get(target, {}))
        if self.before_after.report is not None:
            found = self.reach(aside, module, edit)
            self.before_after.report.write(aside.report, trained.losses, found)
            write_json(aside.report / REACH, found)
            write_json(aside.report / "preflight.json", self.before_after.tokens)
            self.meanwhile.write(aside.report)
        moved = refined.preserved.moved
        if moved:
            rows = [{"name": name, "original": size, "moved": by} for name, (size, by) in moved.items()]
            write_json(aside.preserved, rows)
        finished = Finished(run, module.pipeline, module.source, edit, module.original, aside.metrics)
        for form in dict.fromkeys(("edit", "refined", *self.formats(module.source))):
            finished.write(form, aside.place(form))
        if self.harden_edit is not None and edit.hardening:
            aside.save_hardening(edit.hardening, self.harden_edit.inputs)
            write_json(aside.report / REPORT, self.harden_edit.facts)
            add_to_summary(aside.report / SUMMARY, self.harden_edit.facts)

    def reach(self, run: Run, module: ErasureModule, edit: Edit) -> dict[str, Any]:
        """What the edit leaves within reach of its targets; beside names, or anchors where no name is known."""
        refined, original = module.refined, module.original
        assert refined is not None

        def gram(target: str) -> Callable[[], Tensor]:
            return lambda: refined.sums[target].F

        names = [*module.wanted.names, *self.before_after.preserved]
        names = names or [concept["anchor"] for concept in run.concepts if concept["anchor"]]
        grams = {target: gram(target) for target in run.targets}
        return reach(module.pipeline, original, edit.weights(original), grams, names)

    def show_result(self, module: ErasureModule) -> None:
        """What was erased, and where it lies."""
        console = screen()
        if self.before_after.report is not None and module.trained is not None:
            self.before_after.report.show_table(module.trained.losses, console)
        if self.folder.parent.name == ADDING:
            return  # a library takes the files out of it, and says where it lies itself
        folder = relative_to_project(self.folder)
        for path in sorted(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            console.print(f"{folder}/{path.name}{'/' if path.is_dir() else ''}", highlight=False)
        for line in next_steps(self.folder) if self.last else []:
            console.print(line, highlight=False, soft_wrap=True)


def next_steps(run: Path) -> list[str]:
    """What to do with a run that was written."""
    folder, image = relative_to_project(run), run / "report" / "before_after.png"
    look = f"look at {folder}/report/before_after.png; " if image.is_file() else ""
    if (run / "pipeline").is_dir():
        pipeline = json.dumps(f"{folder}/pipeline", ensure_ascii=False)
        return [f"What next: {look}load it: StableDiffusionPipeline.from_pretrained({pipeline})"]
    return [f"What next: {look}write it in another format: {program()} export --run {quote(folder)} --format lora"]


def with_choices(config: dict[str, Any], data: RunData, wanted: Preserving) -> dict[str, Any]:
    """The configuration with the anchors and names that the run has chosen, so that it is repeated without choosing."""
    model = dict(config["model"])
    if model.get("domain_names") == AUTO:  # even of nothing: no later version chooses where this one did not
        model |= {"domain_names": list(wanted.names) or None}
        model |= {"domain_vocabulary": None} if wanted.moved else {}
    if model.get("domain_styles") == AUTO:
        model |= {"domain_styles": wanted.styles_among([*wanted.names, *wanted.vocabulary])}
    if not data.chosen:
        return {**config, "model": model}
    concepts = [{name: value for name, value in vars(one).items() if value is not None} for one in data.concepts]
    return {**config, "model": model, "data": {**config["data"], "concepts": concepts}}
