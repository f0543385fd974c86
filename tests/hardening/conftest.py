"""A toy run, and the same hardened."""

from pathlib import Path

import pytest
from support.hardening import command
from support.runs import CONCEPTS, config

from mace_pl.cli import erase_main


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harden")
    few = {"images_per_concept": 1, "image_steps": 2, "steps_per_concept": 2}
    erase_main([*config(folder, toy_pipeline, "run", CONCEPTS[:2], **few), "--report_seeds", "0"])
    return folder / "run"


@pytest.fixture(scope="module")
def hardened(run: Path) -> Path:
    erase_main(command(run, run.parent / "hardened"))
    return run.parent / "hardened"
