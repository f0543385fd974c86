"""Choose the names that a run preserves where its settings leave that to it, once the anchors are known."""

from __future__ import annotations

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.remembered import Remembered
from mace_pl.errors import UserError
from mace_pl.images.protocols import RunData
from mace_pl.stages.refine import choose_names


class ChooseNames(Callback):
    """Chooses on one rank for all: of a vocabulary those names that the plain edit would move most.

    Args:
        output_dir: the run's folder, beside which the choice lies until the run is written.
        keep: whether the choice is written; not by a dry run.
    """

    def __init__(self, output_dir: str, keep: bool = True) -> None:
        self.remembered = Remembered(output_dir, "names", keep)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its names.

        Raises:
            UserError: there are none.
        """
        module = cast(ErasureModule, pl_module)
        if not (module.wanted.chosen_from and module.wanted.vocabulary):
            return
        module.begin()
        chosen = self.choose(trainer, module) if trainer.is_global_zero else {}
        chosen = trainer.strategy.broadcast(chosen)
        if not (chosen or module.wanted.names):
            raise UserError(
                f"{module.wanted.chosen_from}: every name of it is erased, so none would be preserved. Give others, or "
                f"leave it out."
            )
        module.take_names(chosen)

    def choose(self, trainer: Trainer, module: ErasureModule) -> dict[str, Any]:
        """The names that an interrupted run has chosen from the same, or new ones."""
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        wanted, concepts = module.wanted.for_targets(data.concepts), data.concepts
        inputs = {
            "concepts or prompts": [[c.target, c.anchor, t] for c, t in zip(concepts, data.templates, strict=True)],
            "model": [module.fingerprint, module.unet_hash],
            "names": [wanted.names, wanted.vocabulary, wanted.affected],
            "method": [repr(module.method), wanted.beside.targets if wanted.beside else []],
        }
        parts = module.pipeline, concepts, data.templates, module.method, wanted
        return self.remembered.get(inputs, lambda: choose_names(*parts))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run's configuration holds them."""
        if trainer.is_global_zero:
            self.remembered.forget()
