"""The command line of training: ``python train.py fit --config configs/train/....yaml``."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mace_pl.commands.command_line import ProjectConfig
from mace_pl.commands.parsing import LightningParser
from mace_pl.files.screen import show_anything


class _TrainCLI(LightningCLI):
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with ``--config``."""
        parser = LightningParser(**kwargs)
        parser.add_argument("-c", "--config", action=ProjectConfig, help="YAML file of settings; later ones win")
        return parser


def train_main(args: ArgsType = None) -> None:
    """Train or fine-tune a part of a pipeline.

    Args:
        args: command line arguments; those of the process by default.
    """
    show_anything()
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    _TrainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=2024,
        args=sys.argv[1:] if args is None else args,
    )
