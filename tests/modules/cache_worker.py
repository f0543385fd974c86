"""Sum captions on two real ranks; run by test_statistics.py as a program of its own."""

from __future__ import annotations

import sys

from mace_pl.data.captions import Captions
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.training.trainer import MaceTrainer

if __name__ == "__main__":
    pretrained, source, output = sys.argv[1:]
    trainer = MaceTrainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        precision="64-true",
        logger=False,
        enable_progress_bar=False,
    )
    trainer.cache(PromptStatistics(pretrained, output), datamodule=Captions(sources=[source], batch_size=2))
