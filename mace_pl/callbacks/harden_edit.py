"""Stage 4: harden the edit when it is fused, before the report looks at it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.meanwhile import Meanwhile
from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.hardening.adapter import check_rank
from mace_pl.hardening.job import Job
from mace_pl.hardening.originals import Look
from mace_pl.hardening.report import report_of, show
from mace_pl.hardening.saved import Saved
from mace_pl.hardening.wording import wording_of
from mace_pl.images.protocols import RunData
from mace_pl.models.backbone import backbone_of
from mace_pl.models.text_encoding import check_free_tokens, names_beside
from mace_pl.training.team import Team
from mace_pl.training.trainer import shows_progress


class HardenEdit(Callback):
    """Hardens where ``model.harden`` says how. What is interrupted resumes from a file beside the output folder.

    Args:
        output_dir: the run's folder.
        meanwhile: the callback that says how far the run is.
        fusion: settings of stage 3, on which the edit depends.
        every_n_steps: the hardening is saved every so many steps.

    Attributes:
        inputs: all that the hardening depends on; empty where there is none.
        facts: what the report says of it.
    """

    def __init__(self, output_dir: str, meanwhile: Meanwhile, fusion: Any = None, every_n_steps: int = 20) -> None:
        self.folder, self.meanwhile = Path(output_dir), meanwhile
        self.fusion, self.every_n_steps = fusion, every_n_steps
        self.saved: Saved | None = None
        self.inputs: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be hardened, before anything is generated."""
        module = cast(ErasureModule, pl_module)
        if module.hardening is not None:
            backbone = backbone_of(module.pipeline)
            layers, rank = backbone.attention_layers(module.hardening.layers), module.hardening.rank
            check_rank(backbone, layers, rank, "model.harden.rank")
            check_free_tokens(module.pipeline, module.hardening.tokens, "model.harden.tokens")
            self.job(trainer, module)

    def job(self, trainer: Trainer, module: ErasureModule) -> Job:
        """The hardening of the run."""
        assert module.hardening is not None
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        names = names_beside(module.pipeline, module.wanted.names, [c.target for c in data.concepts])
        styles = module.wanted.styles_among(names)
        asked = wording_of(data.concepts, data.templates, names, {}, {}, "model.domain_names", styles)
        look = Look(data.image_steps, data.image_guidance, data.image_scheduler, data.images_per_batch)
        team, shown = Team(trainer.global_rank, trainer.world_size), shows_progress(trainer)
        return Job(module.pipeline, module.hardening, asked, look, module.seed, {}, team, shown)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Harden; the module then has the whole edit."""
        module = cast(ErasureModule, pl_module)
        if module.hardening is None:
            return
        assert module.edit is not None
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        made = {"edit": [module.identity_of(concept) for concept in range(len(data.concepts))], "fuse": self.fusion}
        job = replace(self.job(trainer, module), edit=made)
        self.inputs, self.saved = job.inputs, Saved(self.folder, job.inputs)
        module.placed.enter(trainer.strategy.root_device)
        backbone, original = backbone_of(module.pipeline), module.original
        backbone.set_key_values(original)
        edited = module.edit.weights(backbone.text_layers())  # on the device, where they change places in every step
        self.meanwhile.say(trainer, stage="harden", step=0, steps=job.total, loss=None)
        hardened = job.run(edited, self.saved, self.every_n_steps, partial(self.meanwhile.advance, trainer))
        others = backbone.weights_of(name for name in hardened.factors if name not in original)
        original = original | {name: weight.cpu() for name, weight in others.items()}
        module.take_edit(replace(module.edit, hardening=hardened.factors), original)
        self.facts = report_of(hardened.state, job.wording.targets, job.settings)
        if trainer.is_global_zero:
            show(self.facts)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run is written."""
        if self.saved is not None and trainer.is_global_zero:
            self.saved.remove()
