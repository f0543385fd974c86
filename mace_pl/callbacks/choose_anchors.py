"""Choose the anchors that a run's concepts do not name, once, before anything else happens."""

from __future__ import annotations

from typing import cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.remembered import Remembered
from mace_pl.concepts.concept import AUTO, read_names
from mace_pl.images.protocols import RunData
from mace_pl.stages.anchors import Choice, choose_anchors


class ChooseAnchors(Callback):
    """Chooses on one rank for all. The choice lies beside the output folder until the run is written, so that a run
    that resumes does not choose again.

    Args:
        output_dir: the run's folder.
        preserved: names to preserve, beside those of the model's settings.
        classifier: folder of the CLIPModel that looks whether a name is generated well; nothing looks when None.
        keep: whether the choice is written; not by a dry run.
    """

    def __init__(
        self, output_dir: str, preserved: list[str] | None = None, classifier: str | None = None, keep: bool = True
    ) -> None:
        self.remembered = Remembered(output_dir, "anchors", keep)
        self.preserved, self.classifier = read_names(preserved, "kept"), classifier

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the data their anchors."""
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        if all(concept.anchor != AUTO for concept in data.concepts):
            return
        module = cast(ErasureModule, pl_module)
        chosen = self.choose(trainer, module, data) if trainer.is_global_zero else {}
        data.take_anchors(trainer.strategy.broadcast(chosen))

    def choose(self, trainer: Trainer, module: ErasureModule, data: RunData) -> dict[str, str]:
        """The anchors that an interrupted run has chosen from the same, or new ones."""
        wanted = module.wanted
        names = list(dict.fromkeys([*wanted.known, *self.preserved]))
        beside = wanted.beside.targets if wanted.beside else []
        images = (data.image_steps, data.image_guidance, data.image_scheduler)
        choice = Choice(data.anchors, names, beside, self.classifier, *images)
        inputs = {
            "concepts": [[concept.target, concept.anchor, concept.kind] for concept in data.concepts],
            "model": [module.fingerprint, *([module.unet_hash, *images] if self.classifier else [])],
            "names": [data.anchors, names, beside],
            "method or classifier": [repr(module.method), self.classifier],
        }
        module.placed.enter(trainer.strategy.root_device)
        parts = module.pipeline, data.concepts, choice, module.method.anchored
        return self.remembered.get(inputs, lambda: choose_anchors(*parts))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run's configuration holds them."""
        if trainer.is_global_zero:
            self.remembered.forget()
