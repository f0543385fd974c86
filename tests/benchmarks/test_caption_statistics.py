"""The benchmark of statistics runs, at toy size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_prints_speeds_ratios_and_peaks() -> None:
    size = [
        "--width",
        "64",
        "--layers",
        "1",
        "--count",
        "24",
        "--rounds",
        "1",
        "--batch_sizes",
        "[4]",
        "--threads",
        "1",
    ]
    captions = ["--captions", "mace_pl/pretraining/emoji/captions.json"]
    done = subprocess.run(
        [sys.executable, "benchmarks/caption_statistics.py", *captions, *size],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for line in (
        r"24 captions, batches of 4, 1 threads, width 64",
        r"\(a\) text encoder alone +[\d.]+ captions/s",
        r"\(b\) this cache +[\d.]+ captions/s",
        r"\(c\) textbook form +[\d.]+ captions/s",
        r"ratios b/a [\d.]+, b/c [\d.]+",
        r"peak memory beyond the weights: \(b\) \d+ MB, \(c\) \d+ MB",
    ):
        assert re.search(line, done.stdout), done.stdout
