"""Strengths are solved: they train nothing, and they come along."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.runs import CONCEPTS, config
from support.tolerances import FLOAT32_EDIT, below

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.library import add_concepts, remove_concepts
from mace_pl.commands.train_entries import train_again
from mace_pl.library.change import Library
from mace_pl.library.states import Base, moved_of
from mace_pl.run import Run
from mace_pl.studio.saving import Saved, save_state


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three concepts."""
    place = tmp_path_factory.mktemp("states")
    erase_main([*config(place, toy_pipeline, "run"), "--save_pipeline", "false", "--report_seeds", "0"])
    return place / "run"


def saved(folder: Path, strengths: dict[str, float]) -> None:
    """As the page saves them."""
    run = Run.load(folder)
    save_state(Saved(run, {}), Base.load(run), strengths, None, None)


def moved(folder: Path) -> dict[str, float]:
    return {target: far for target, far in moved_of(Run.load(folder)).items() if far is not None}


def test_a_strength_is_nothing_that_moves_a_lora(run: Path, tmp_path: Path) -> None:
    """Neither the target's own nor that of another one; what moved for another reason is trained again once."""
    library = Path(shutil.copytree(run, tmp_path / "run"))
    strengths = {concept["target"]: 0.3 for concept in CONCEPTS}
    saved(library, strengths)
    assert set(moved(library)) == set(strengths)
    for far in moved(library).values():
        below(far, FLOAT32_EDIT)
    remove_concepts(str(library), "painter", retrain_above=None)
    (least, near), (most, far) = sorted(moved(library).items(), key=lambda item: item[1])
    again = train_again(Library.open(str(library)), (near + far) / 2)
    assert list(again.history.events[-1].targets) == [most]
    below(moved(library)[most], FLOAT32_EDIT)
    below(abs(moved(library)[least] - near), FLOAT32_EDIT)
    fused = Run.load(library).fused
    assert fused is not None and dict(fused.weights) == {least: 0.3, most: 0.3}


def test_strengths_come_along(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of what is new; what both have keeps its own."""
    library = fuse_run(str(run), str(tmp_path / "own"), "ship", {"dog": 0.8}, save_pipeline=False)
    other = fuse_run(str(run), str(tmp_path / "other"), "painter", {"ship": 0.5, "dog": 0.1}, save_pipeline=False)
    add_concepts(str(library), merge=str(other), retrain_above=None)
    fused = Run.load(library).fused
    assert fused is not None and dict(fused.weights) == {"dog": 0.8, "ship": 0.5}
    assert "The strength of 'ship' is 0.5, as in" in capsys.readouterr().out
