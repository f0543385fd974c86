"""The command line of training: ``python train.py fit --config configs/train/....yaml``."""

from __future__ import annotations

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI


def train_main(args: ArgsType = None) -> None:
    """Train or fine-tune a part of a pipeline.

    Args:
        args: command line arguments; those of the process by default.
    """
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=2024,
        args=args,
    )
