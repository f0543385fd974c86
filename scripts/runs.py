"""What the scripts beside this file share: their command line, and commands of ``erase.py`` side by side."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from jsonargparse import auto_cli

from mace_pl.errors import UserError

ERASE = Path(__file__).resolve().parents[1] / "erase.py"
RUNS = Path("checkpoints/erased")
SCORES = Path("checkpoints/scores")
PROCESSES = 2


def run(main: Callable[..., object]) -> None:
    """A script's main by its command line; what the user can mend is one line."""
    try:
        auto_cli(main, as_positional=False)
    except UserError as error:
        raise SystemExit(str(error)) from None


def command(*words: str) -> None:
    """One command of ``erase.py`` in a process of its own, on one core per process."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # two processes do more than two threads
    subprocess.run([sys.executable, str(ERASE), *words], check=True, env=os.environ | threads)


def processor_seconds() -> float:
    """Those of all commands that have ended; other programs on the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def concepts_of(config: str) -> list[dict[str, str]]:
    """The concepts of a configuration of ``fit``."""
    concepts: list[dict[str, str]] = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["data"]["concepts"]
    return concepts


def fit(config: str, name: str, concepts: list[dict[str, str]] | None = None, *more: str) -> Path:
    """Erase, unless it was done; the report is left out, the scores below say more."""
    if not (RUNS / name).exists():
        given = [] if concepts is None else ["--data.concepts", json.dumps(concepts)]
        quiet = ["--trainer.enable_progress_bar", "false", "--kept", "[]"]
        command("fit", "--config", config, "--output_dir", str(RUNS / name), *quiet, *given, *more)
    return RUNS / name


def score(config: str, name: str, runs: list[Path], *more: str) -> None:
    """Score runs in one table, each rank a share of the images."""
    files = ["--model.output", str(SCORES / f"{name}.json"), "--model.overwrite", "true"]
    both = ["--trainer.accelerator", "cpu", "--trainer.devices", str(PROCESSES), "--trainer.strategy", "ddp"]
    command("test", "--config", config, "--model.runs", json.dumps([str(run) for run in runs]), *files, *both, *more)
