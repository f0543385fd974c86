"""What ``harden`` and the commands behind it refuse."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.hardening import command
from support.runs import exit_message

from mace_pl.errors import UserError
from mace_pl.export.apply import apply_files
from mace_pl.files.artifacts import read_metadata
from mace_pl.models.pipeline import load_pipeline
from mace_pl.run import Run


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--harden.rank", "0"], "harden.rank=0 must be at least 1"),
        (["--harden.rank", "99"], "harden.rank=99 must be at most 32"),
        (["--harden.plain", "1"], "harden.plain=1"),
        (["--harden.lr", "0"], "harden.lr=0"),
        (["--harden.attack_moves", "-1"], "harden.attack_moves=-1.0 must be from 0 to 1,000,000"),
        (["--harden.preserved_weight", "1e300"], "harden.preserved_weight=1e+300 must be from 0 to 1,000,000"),
        (["--harden.attack_lr", "1e30"], "harden.attack_lr=1e+30 must be above 0, and at most 1,000,000"),
        (["--harden.tokens", "75"], "harden.tokens=75 must be at most 74"),
        (["--seed", "-1"], "seed=-1 must be from 0"),
        (["--preserved", "[ship]"], "preserved: 'ship' asks for a target"),
        (["--preserved", "[dog, a ship]"], "preserved: 'a ship' asks for a target"),
        (["--synonyms", "{ship: []}"], "synonyms of 'ship' hold an empty text, or none"),
        (["--sentences", "{ship: ['']}"], "sentences of 'ship' hold an empty text, or none"),
        (["--synonyms", "{cat: [kitten]}"], "--synonyms names 'cat', no target"),
        (["--device", "nothing"], "device=nothing is not on this machine"),
        pytest.param(
            ["--device", "cuda:7"],
            "device=cuda:7 is not on this machine (no GPU is seen)",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--keep_every_n_steps", "0"], "keep_every_n_steps=0"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = exit_message([*command(run, tmp_path / "out"), *more], capsys)
    assert said in message
    assert not list(tmp_path.iterdir()), "not even what a hardening resumes from"


def test_a_hardened_run_and_no_run_are_refused(
    run: Path, hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is hardened. Harden the run that" in exit_message(command(hardened, tmp_path / "out"), capsys)
    assert "no output folder of fit or fuse" in exit_message(command(tmp_path, tmp_path / "out"), capsys)
    assert "format=edit" in exit_message(["export", "--run", str(hardened), "--format", "edit"], capsys)
    shutil.copytree(run, tmp_path / "swapped")
    (tmp_path / "swapped/statistics/painter.safetensors").unlink()
    said = exit_message(command(tmp_path / "swapped", tmp_path / "out"), capsys)
    assert "erases 'painter', of which it has no statistics" in said and not (tmp_path / ".out.training").exists()
    shutil.copytree(run, tmp_path / "less")
    (tmp_path / "less/edit.safetensors").unlink()
    said = exit_message(command(tmp_path / "less", tmp_path / "out"), capsys)
    assert "edit.safetensors is no file" in said and not (tmp_path / ".out.training").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2 without RANK" in exit_message(command(run, tmp_path / "out"), capsys)


def test_a_hardened_run_that_lost_its_hardening_is_refused(
    hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(hardened, tmp_path / "run")
    (tmp_path / "run/hardening.safetensors").unlink()
    said = exit_message(
        ["export", "--run", str(tmp_path / "run"), "--format", "lora", "--output", str(tmp_path / "o")], capsys
    )
    assert "hardening.safetensors is missing" in said and not (tmp_path / "o").exists()
    for other in (["fuse"], ["remove", "--targets", "[painter]"]):
        assert "is hardened, for the edit" in exit_message([*other, "--run", str(tmp_path / "run")], capsys)


def test_a_hardening_of_another_edit_is_refused(
    hardened: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(hardened, other)
    edit = Run.load(hardened).edit
    made = read_metadata(other / "edit.safetensors", "run")
    named = {name: made[name] for name in ("pretrained", "concepts")}
    replace(edit, R=2 * edit.R, hardening={}).save(other / "edit.safetensors", named)
    said = exit_message(["export", "--run", str(other), "--format", "lora", "--output", str(tmp_path / "o")], capsys)
    assert "was trained on top of another edit.safetensors" in said and not (tmp_path / "o").exists()
    with pytest.raises(UserError, match=r"another edit\.safetensors"):
        apply_files(load_pipeline(str(toy_pipeline)), [str(other)], "model.edited")
