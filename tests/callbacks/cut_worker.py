"""Kill runs with SIGKILL and give their command again; run by test_partial_sums.py as a program of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from safetensors import safe_open

from mace_pl.data.captions import Captions
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.training.trainer import MaceTrainer


class Slow(Callback):
    """Time to be killed in, and a note of the captions that this run encoded."""

    def __init__(self, pause: float, note: Path) -> None:
        self.pause, self.note, self.encoded = pause, note, 0

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: int, *_: Any) -> None:
        self.encoded += outputs
        time.sleep(self.pause)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        self.note.with_name(f"{self.note.name}.{trainer.global_rank}").write_text(str(self.encoded))


def cache(pretrained: str, source: str, output: Path, processes: int, pause: float) -> None:
    trainer = MaceTrainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        callbacks=[Slow(pause, output.with_name(f"{output.stem}.encoded"))],
    )
    model = PromptStatistics(pretrained, str(output), save_every=4)
    trainer.cache(model, datamodule=Captions(sources=[source], batch_size=3))


def start(*arguments: Any) -> int:
    """Run ``cache`` in a process group of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        code = 1
        try:
            cache(*arguments)
            code = 0
        finally:
            os._exit(code)
    return pid


def done(path: Path) -> int:
    """Captions of a partial file."""
    if not path.is_file():
        return 0
    with safe_open(str(path), framework="pt") as file:
        return int(json.loads(file.metadata()["mace_pl"])["done"])


def kill_and_finish(pretrained: str, source: str, output: Path, processes: int) -> None:
    partial = output.with_name(f"{output.name}.0-of-{processes}.partial")
    for goal in (1, 20, 30):  # as soon as there is a partial file, then twice while it is written anew
        child = start(pretrained, source, output, processes, 0.01)
        while done(partial) < goal and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        os.killpg(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
        assert not output.exists()
    child = start(pretrained, source, output, processes, 0)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    for count in (1, 2):
        kill_and_finish(sys.argv[1], sys.argv[2], Path(sys.argv[3]) / f"cut{count}.safetensors", count)
