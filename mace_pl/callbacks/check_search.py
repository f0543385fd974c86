"""Refuse a search behind a run that cannot be, before anything is trained; then say that the run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.callbacks.write_run import with_choices
from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.evaluation.judges import CLIP, ByOwnNames
from mace_pl.images.protocols import RunData
from mace_pl.models.text_encoding import names_beside


class CheckSearch(Callback):
    """Behind the callbacks that choose names.

    Args:
        config: of the run.
        preserved: names that are scored where the run preserves none.
        judges: of the search and of its confirmation; None for none.
        begin: called on one rank when all is checked and the training begins.
    """

    def __init__(
        self, config: Mapping[str, Any], preserved: list[str], judges: Sequence[Any], begin: Callable[[], None]
    ) -> None:
        self.config, self.preserved, self.judges, self.begin = dict(config), preserved, judges, begin

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at what is scored.

        Raises:
            UserError: no name, or one that a judge does not know.
        """
        module, data = cast(ErasureModule, pl_module), cast(RunData, trainer.datamodule)  # type: ignore[attr-defined]
        targets = [concept.target for concept in data.concepts]
        given = with_choices(self.config, data, module.wanted)["model"].get("domain_names") or self.preserved
        names = names_beside(module.pipeline, read_names(given, "kept"), targets)
        if not names:
            raise UserError("tune: no name is preserved that could be scored. Give some as --kept.")
        for judge in self.judges:
            if judge not in (None, CLIP):
                ByOwnNames(judge, [*targets, *names], "model.domain_names or kept")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing of an earlier search is removed before."""
        if trainer.is_global_zero:
            self.begin()
