"""What a change of a library says: the names that it leaves out, once, and what is loaded now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from support.runs import config

from mace_pl.cli import erase_main

QUICK = ["--model.method", "MaceRefinement", "--save_pipeline", "false", "--report_seeds", "0"]
NAMES = ["--model.domain_names", "[ship, dog, cat]", "--model.refine.domain", "1"]


def test_a_change_says_what_it_leaves_out_and_what_to_load(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = [{"target": "ship", "anchor": "ground"}]
    erase_main([*config(tmp_path, toy_pipeline, "run", concepts), *QUICK, *NAMES])
    assert capsys.readouterr().err.count("left out") == 1
    run = ["--run", str(tmp_path / "run")]
    erase_main(["add", *run, "--concepts", "[{target: dog, anchor: sky}]"])
    shown = capsys.readouterr()
    assert [line.split(": ")[-1] for line in shown.err.splitlines() if "left out" in line] == ["dog"]
    told = re.search(r"The edit is now (\S+)\. .*from_pretrained\('(.+)'\)", shown.out)
    assert told is not None and Path(told[1]).is_file() and not Path(told[2]).exists()
    erase_main(["export", *run, "--format", "pipeline"])
    DiffusionPipeline.from_pretrained(told[2])
    erase_main(["undo", *run])
    assert "For a pipeline: erase.py export" in capsys.readouterr().out
    erase_main(["add", *run, "--concepts", "[dog]"])  # a target alone, as for fit
    assert "For a pipeline: erase.py export" in capsys.readouterr().out
