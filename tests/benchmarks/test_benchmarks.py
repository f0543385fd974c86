"""The benchmarks run, at toy size, and print their tables."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from support.forks import forked
from support.tolerances import FLOAT32_MATRICES, below

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def printed(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each benchmark prints: commands one after the other in one process, with one fork server."""
    plot = str(tmp_path_factory.mktemp("benchmarks") / "g.png")
    toy, two = ["--pretrained", str(toy_pipeline)], ["--concepts", "2"]
    sizes = {
        "training": [*toy, *two, "--steps", "2", "--reference_steps", "1", "--rounds", "1"],
        "closed_form": [*two, "--prompts", "2", "--width", "32", "--matrices", "2"],
        "methods": ["--family", "toy", "--concepts", "[2]", "--names", "9", "--most_prompts", "3"],
        "sd14": ["--size", "64", "--scale", "16", "--layers", "1", "--concepts_at_once", "[2]"],
        "growth": [*toy, "--largest", "2", "--steps", "1", "--output", plot],
        "live": ["--concepts", "3", "--width", "32", "--moves", "2"],
    }
    sizes["caption_statistics"] = ["--captions", "mace_pl/pretraining/emoji/captions.json", "--width", "64"]
    sizes["caption_statistics"] += ["--layers", "1", "--count", "24", "--rounds", "1", "--batch_sizes", "[4]"]
    sizes["methods"] += ["--textbook_layers", "1"]
    given = {name: [*options, "--threads", "1"] for name, options in sizes.items()}
    done = forked(Path(__file__).with_name("in_turn.py"), [json.dumps(given)], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    shown: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return {**shown, "plot": plot}


def test_training(printed: dict[str, str]) -> None:
    shown = printed["training"]
    assert re.search(r"reference +│ +[\d.]+ │ +1\.00", shown), shown
    assert re.search(r"ours +│ +[\d.]+ │ +[\d.]+", shown), shown


def test_closed_form(printed: dict[str, str]) -> None:
    shown = printed["closed_form"]
    assert re.search(r"textbook +│ +[\d.]+ │ +1\.0 │", shown), shown
    error = re.search(r"largest relative difference of a matrix (\S+)", shown)
    assert error is not None, shown
    below(float(error[1]), FLOAT32_MATRICES)


def test_methods(printed: dict[str, str]) -> None:
    shown = printed["methods"]
    for method in ("MaceRefinement", "UCE", "RECE", "SPEED", "NullSpace", "CURE", "OCE", "SPEED layers"):
        assert re.search(rf"│ {method} +│ +[\d.]+ │ +[\d.]+ │ +≈[\d.]+ │ +\d+%", shown), shown
    error = re.search(r"largest relative difference of UCE from the textbook form (\S+)", shown)
    assert error is not None, shown
    below(float(error[1]), FLOAT32_MATRICES)


def test_sd14(printed: dict[str, str]) -> None:
    for form in (r"reference +│ +1", r"ours +│ +2", r"checkpointing +│ +2"):
        assert re.search(rf"{form} │ +[\d.]+ │ +[\d.]+ │", printed["sd14"]), printed["sd14"]


def test_growth(printed: dict[str, str]) -> None:
    assert re.search(r"seconds -?[\d.]+ \+ -?[\d.]+ n, peak MB", printed["growth"]), printed["growth"]
    assert Path(printed["plot"]).read_bytes().startswith(b"\x89PNG")


def test_live(printed: dict[str, str]) -> None:
    assert re.search(r"a move +│ +[\d.]+ │ +[\d.]+", printed["live"]), printed["live"]


def test_caption_statistics(printed: dict[str, str]) -> None:
    for line in (
        r"24 captions, batches of 4, 1 threads, width 64",
        r"\(a\) text encoder alone +[\d.]+ captions/s",
        r"\(b\) this cache +[\d.]+ captions/s",
        r"\(c\) textbook form +[\d.]+ captions/s",
        r"ratios b/a [\d.]+, b/c [\d.]+",
        r"peak memory beyond the weights: \(b\) \d+ MB, \(c\) \d+ MB",
    ):
        assert re.search(line, printed["caption_statistics"]), printed["caption_statistics"]
