"""Write the statistics of captions when they are summed, and say what was written."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from rich.table import Table

from mace_pl.callbacks.protocols import StatisticsModule
from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, write_tensors
from mace_pl.files.screen import screen
from mace_pl.methods.gram_statistics import KIND, POOLED
from mace_pl.version import __version__


class WriteStatistics(Callback):
    """Write the ``statistics`` of a ``PromptStatistics`` to a file at the end of ``predict``, on rank 0.

    Args:
        output: the ``.safetensors`` file.
        overwrite: replace it where it exists.
    """

    def __init__(self, output: Path, overwrite: bool = False) -> None:
        if output.suffix != ".safetensors":
            raise UserError(f"output={output} must end with .safetensors.")
        if output.is_dir():
            raise UserError(f"output={output} is a folder. Give the path of a file in it.")
        self.output = output
        self.overwrite = overwrite

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an output that exists or cannot be written before any caption is encoded.

        Raises:
            UserError: it exists, or a file cannot be made beside it.
        """
        claim_output(self.output, self.overwrite, setting="model.output")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output.parent):
                pass
        except OSError as error:
            raise UserError(
                f"model.output: {self.output} cannot be written ({error.strerror}). Choose another --model.output."
            ) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and print a summary; the sums were reduced on every rank before.

        Raises:
            UserError: other captions were summed than there are.
        """
        module, data = cast(StatisticsModule, pl_module), getattr(trainer, "datamodule", None)
        store = getattr(data, "store", None)
        captions = int(module.statistics["captions"])
        if store is not None and captions != store.total:
            raise UserError(
                f"{captions} captions were summed where there are {store.total}. Leave --trainer.limit_predict_batches "
                f"and --trainer.fast_dev_run out; --data.limit gives statistics of fewer captions."
            )
        metadata: dict[str, Any] = {
            "encoder": module.fingerprint,
            "captions": captions,
            "distinct_captions": 0 if store is None else len(store),
            "tokens": int(module.statistics["tokens"]),
            "token_choice": getattr(data, "tokens", "all"),
            "sources": getattr(data, "provenance", []),
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
        }
        if trainer.is_global_zero:
            gram = module.statistics["gram"]
            tensors = {name: module.statistics[name] for name in ("gram", POOLED) if name in module.statistics}
            write_tensors(self.output, tensors, kind=KIND, metadata=metadata)
            print_summary(self.output, metadata, gram.shape[0], float(gram.trace()) / metadata["tokens"])


def print_summary(path: Path, metadata: dict[str, Any], width: int, trace: float) -> None:
    """Print what was summed and where it lies."""
    table = Table(title="Statistics of captions", show_header=False)
    table.add_row("captions", f"{metadata['captions']:,} ({metadata['distinct_captions']:,} distinct)")
    table.add_row("tokens", f"{metadata['tokens']:,} ({metadata['token_choice']})")
    table.add_row("width", f"{width:,}")
    table.add_row("trace per token", f"{trace:.4g}")
    table.add_row("file", str(path))
    screen().print(table)
