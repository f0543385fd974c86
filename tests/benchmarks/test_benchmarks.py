"""The benchmarks run, at toy size, and print their tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tolerances import FLOAT32_MATRICES, below

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def output(name: str, *options: str) -> str:
    command = [sys.executable, f"benchmarks/{name}.py", *options, "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_training(toy_pipeline: Path) -> None:
    options = ["--concepts", "2", "--steps", "2", "--reference_steps", "1", "--rounds", "1"]
    printed = output("training", "--pretrained", str(toy_pipeline), *options)
    assert re.search(r"reference +│ +[\d.]+ │ +1\.00", printed), printed
    assert re.search(r"ours +│ +[\d.]+ │ +[\d.]+", printed), printed


def test_closed_form() -> None:
    printed = output("closed_form", "--concepts", "2", "--prompts", "2", "--width", "32", "--matrices", "2")
    assert re.search(r"textbook +│ +[\d.]+ │ +1\.0 │", printed), printed
    error = re.search(r"largest relative difference of a matrix (\S+)", printed)
    assert error is not None, printed
    below(float(error[1]), FLOAT32_MATRICES)


def test_methods() -> None:
    sizes = ["--family", "toy", "--concepts", "[2]", "--names", "9", "--most_prompts", "3", "--textbook_layers", "1"]
    printed = output("methods", *sizes)
    for method in ("MaceRefinement", "UCE", "RECE", "SPEED", "NullSpace", "CURE", "OCE", "SPEED layers"):
        assert re.search(rf"│ {method} +│ +[\d.]+ │ +[\d.]+ │ +≈[\d.]+ │ +\d+%", printed), printed
    error = re.search(r"largest relative difference of UCE from the textbook form (\S+)", printed)
    assert error is not None, printed
    below(float(error[1]), FLOAT32_MATRICES)


def test_sd14() -> None:
    printed = output("sd14", "--size", "64", "--scale", "16", "--layers", "1", "--concepts_at_once", "[2]")
    for form in (r"reference +│ +1", r"ours +│ +2", r"checkpointing +│ +2"):
        assert re.search(rf"{form} │ +[\d.]+ │ +[\d.]+ │", printed), printed


def test_growth(toy_pipeline: Path, tmp_path: Path) -> None:
    options = ["--pretrained", str(toy_pipeline), "--largest", "2", "--steps", "1", "--output", str(tmp_path / "g.png")]
    printed = output("growth", *options)
    assert re.search(r"seconds -?[\d.]+ \+ -?[\d.]+ n, peak MB", printed), printed
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_live() -> None:
    printed = output("live", "--concepts", "3", "--width", "32", "--moves", "2")
    assert re.search(r"a move +│ +[\d.]+ │ +[\d.]+", printed), printed
