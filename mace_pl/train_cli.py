"""The command line of training: ``python train.py fit --config configs/train/....yaml``."""

from __future__ import annotations

import sys
import warnings

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType

from mace_pl.commands.command_line import RAISING, OneLineCLI
from mace_pl.errors import UserError
from mace_pl.files.screen import show_anything

COMMAND = "fit"


class _TrainCLI(OneLineCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Training alone."""
        return {COMMAND: {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}}


def train_main(args: ArgsType = None) -> None:
    """Train or fine-tune a part of a pipeline; what a user can mend is one line.

    Args:
        args: command line arguments; those of the process by default.
    """
    show_anything()
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        _TrainCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=2024,
            parser_kwargs=RAISING | {COMMAND: dict(RAISING)},
            args=sys.argv[1:] if args is None else args,
        )
    except UserError as error:
        sys.exit(f"train.py {COMMAND}: error: {error}")
