"""Save the sums of a long run in partial files, from which an interrupted run resumes."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mace_pl.callbacks.protocols import StatisticsModule
from mace_pl.data.captions import Captions
from mace_pl.errors import UserError
from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.files.identity import differing
from mace_pl.files.leftovers import clear_leftovers

KIND = "partial statistics"


class PartialSums(Callback):
    """Write this rank's sums every so many captions, start from them, and remove them at the end.

    The sums are the states themselves, written between two batches: a run that resumes adds the same numbers in the
    same order as one that was never cut off.

    Args:
        output: the file of the finished statistics; partial files lie beside it.
        every: distinct captions of this rank between two partial files.
    """

    def __init__(self, output: Path, every: int) -> None:
        self.output = output
        self.every = every
        self.done = 0
        self.inputs: dict[str, Any] = {}
        self.path = output

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resume from the partial file of an earlier run.

        Raises:
            UserError: it was made from other captions, another encoder, or with other settings.
        """
        module = cast(StatisticsModule, pl_module)
        data: Captions = trainer.datamodule  # type: ignore[attr-defined]
        self.done, states = 0, {}
        if data is None:
            return
        self.inputs = {
            "captions": data.store.digest.hexdigest(),
            "text encoder": module.fingerprint,
            "data.tokens": data.tokens,
            "trainer.precision": str(trainer.precision),
            "number of ranks": trainer.world_size,
        }
        if module.pooled is not None:
            self.inputs["sums (pooled ones are new)"] = "with pooled embeddings"
        self.path = self.output.with_name(f"{self.output.name}.{trainer.global_rank}-of-{trainer.world_size}.partial")
        for partial in sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.*-of-*.partial")):
            tensors, metadata = self._read(partial)
            if partial == self.path:
                states, self.done = tensors, int(metadata["done"])
        module.resume(states)
        data.resume(self.done)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, metadata = read_tensors(path, KIND, "model.output")
        differ = differing(metadata.get("inputs", {}), self.inputs)
        if differ:
            raise UserError(
                f"model.output: the partial file {path} belongs to a run that was cut off and had other "
                f"{' and other '.join(differ)}. Give that run's command to finish it, delete the file to drop it, or "
                f"choose another --model.output."
            )
        return tensors, metadata

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the sums where another ``every`` captions are done."""
        before, self.done = self.done, self.done + int(outputs)
        if self.inputs and self.done // self.every > before // self.every:
            states = cast(StatisticsModule, pl_module).states()
            write_tensors(self.path, states, KIND, {"inputs": self.inputs, "done": self.done})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove this rank's partial file, and what a kill left of one, once the result is written."""
        trainer.strategy.barrier("statistics are written")
        if self.inputs:
            self.path.unlink(missing_ok=True)
            clear_leftovers(self.path)
