"""What other libraries say about themselves is not between a command's own lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.runs import SCRIPT, config

NOTICES = ["torchvision", "Loading weights", "Loading pipeline", "LeafSpec", "eval mode", "Trainable params", "float32"]


def run(args: list[str], **more: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *args], env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_run_shows_its_own_lines(toy_pipeline: Path, tmp_path: Path) -> None:
    shown = run(config(tmp_path, toy_pipeline, "run"))
    assert "Before training" in shown and "Concepts side by side" in shown and "Erased" in shown
    assert not [notice for notice in NOTICES if notice in shown]


def test_who_asks_for_notices_sees_them(toy_pipeline: Path, tmp_path: Path) -> None:
    args = [*config(tmp_path, toy_pipeline, "run"), "--model.method", "MaceRefinement", "--report_seeds", "0"]
    assert "torchvision" in run(args, TRANSFORMERS_VERBOSITY="info")
