"""The command line of training: ``python train.py fit --config configs/train/....yaml``."""

from __future__ import annotations

import sys
import warnings

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI

from mace_pl.commands.parsing import LightningParser, check_configs
from mace_pl.files.paths import with_bundled
from mace_pl.files.screen import show_anything


def train_main(args: ArgsType = None) -> None:
    """Train or fine-tune a part of a pipeline.

    Args:
        args: command line arguments; those of the process by default.
    """
    show_anything()
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list):
        given = with_bundled(given)
        check_configs(given)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=2024,
        parser_class=LightningParser,
        args=given,
    )
