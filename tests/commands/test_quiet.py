"""A command shows its own lines alone; what other libraries say is in the run's log."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.forks import forked
from support.runs import SCRIPT, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.commands.quiet import quiet_terminal

#: what our own lines are: bars, frames of tables and their titles, stages and the files of the run
OWN = re.compile(
    r"[─━╭╮╰╯│┃┏┓┗┛┡┩┳┇╇┴┬└┘├┤╞╪╡]|^\s*[|+]|^\s*(Before training|Erased|Resuming .*|Not resumed: .*)\s*$"
    r"|^Concepts at once: |^The base model hardly |^Written to |^\s*(concepts|loss|step|stage): "
    r"|^\s*[\d.]+\s*$|^\S+/run/[\w.]+/?$|^data: |^model\.domain_names: |^The log of the run is "
    r"|^fit: loading …$|^What next: |^Tokens: pieces of words|^No names are preserved: "
    r"|^Disk: |^Weights of stage |^Weights of stage [13]: |^\s*What the run takes on one device, estimated\s*$"
)
#: of lightning and of transformers
OTHERS = ["lightning.fabric.utilities.seed: Seed set to 2024", "GPU available: False", "`Trainer.fit` stopped"]


def run(args: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "300"} | more  # no path is broken
    return subprocess.run([sys.executable, str(SCRIPT), *args], env=env, capture_output=True, text=True)


def foreign(shown: str) -> list[str]:
    """The lines that no command of ours shows."""
    return [line for line in re.split(r"[\r\n]+", shown) if line.strip() and not OWN.search(line)]


def test_a_run_shows_its_own_lines(toy_pipeline: Path, tmp_path: Path) -> None:
    done = run(config(tmp_path, toy_pipeline, "run"))
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "Before training" in shown and "Concepts at once" in shown and "Erased" in shown
    assert foreign(shown) == []
    log = (tmp_path / "run" / "report" / "run.log").read_text(encoding="utf-8")
    assert all(said in log for said in OTHERS), log
    assert re.search(r"^\d{4}-\d\d-\d\d .* INFO mace_pl\.modules\.concept_erasure: Concepts at once", log, re.MULTILINE)
    assert not list(tmp_path.glob(".run*")), "the log has moved into the run"


def test_what_libraries_say_is_seen_as_foreign() -> None:
    said = "Seed set to 2024\nGPU available: False, used: False\nWarning: eval mode\nLoading weights: 100%|##| 1/1"
    assert len(foreign(said)) == len(said.splitlines())


def test_who_asks_for_notices_sees_them(toy_pipeline: Path, tmp_path: Path) -> None:
    args = [*config(tmp_path, toy_pipeline, "run"), "--model.method", "MaceRefinement", "--report_seeds", "0"]
    done = run(args, TRANSFORMERS_VERBOSITY="info")
    assert "torchvision" in done.stdout + done.stderr


def test_a_failed_run_says_where_its_log_is(toy_pipeline: Path, tmp_path: Path) -> None:
    more = ["--data.steps_per_concept", "9999", "--trainer.max_time", "00:00:00:01"]
    done = forked(SCRIPT, [*config(tmp_path, toy_pipeline, "run"), *more], {"COLUMNS": "300"})
    assert done.returncode == 1
    told = re.search(r"^The log of the run is (.*)$", done.stderr, re.MULTILINE)
    assert told is not None, done.stderr
    log = Path(told[1]).read_text(encoding="utf-8")
    assert "ERROR mace_pl: the error:" in log and "trainer.max_time stopped the training" in log


def test_a_predict_that_fails_leaves_its_log_beside_the_images(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "samples"
    args = ["predict", "--model.pretrained", str(toy_pipeline), "--model.output", str(output), "--model.steps", "1"]
    args += ["--data.names", "[ship, dog]", "--data.batch_size", "1", "--trainer.accelerator", "cpu"]
    with pytest.raises(ArithmeticError):
        erase_main([*args, "--trainer.callbacks", "support.runs.Fails"])
    log = tmp_path / ".samples.failed" / "run.log"
    assert f"The log of the run is {log}" in capsys.readouterr().err
    said = log.read_text(encoding="utf-8")
    assert "GPU available: False" in said and "Traceback" in said and "nothing that a user can mend" in said
    assert sorted(path.suffix for path in output.iterdir()) == [".json", ".png"]
    erase_main(args)
    assert "predict: 1 of 1 batches\n" in capsys.readouterr().out, "no bar in a file; one image was there"
    assert sorted(path.suffix for path in output.iterdir()) == [".json", ".png", ".png"]
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    exit_message([*args, "--data.names", "[ship]"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"], "what a user can mend is one line"


def test_a_line_is_shown_once_and_logged_each_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with quiet_terminal() as log:
        for line in ("left out: ship", "left out: dog", "left out: ship"):
            logging.getLogger("mace_pl.stages").info(line)
        log.open(tmp_path)
    assert capsys.readouterr().err == "left out: ship\nleft out: dog\n"
    assert (tmp_path / "run.log").read_text(encoding="utf-8").count("left out: ship") == 2
