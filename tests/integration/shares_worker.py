"""Sum captions of several files on several forked ranks; run by test_statistics_shards.py as a program of its own."""

from __future__ import annotations

import sys

import torch

from mace_pl.data.captions import Captions
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.training.trainer import MaceTrainer

if __name__ == "__main__":
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    pretrained, folder, *sizes = sys.argv[1:]
    for ranks in (2, 3):
        for size in sizes:
            trainer = MaceTrainer(
                accelerator="cpu",
                devices=ranks,
                strategy="ddp_fork",
                precision="64-true",
                logger=False,
                enable_progress_bar=False,
            )
            model = PromptStatistics(pretrained, f"{folder}/{size}-{ranks}.safetensors")
            trainer.cache(model, datamodule=Captions(sources=[f"{folder}/{size}.txt"]))
