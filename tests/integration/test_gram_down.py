"""Whole runs with fixed down-projections: resumed, exported and fused again as others are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from support.finished import noise_of
from support.runs import config, exit_message
from support.tolerances import FLOAT16_PASS, FLOAT32_EDIT, MOVED, above, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.export.apply import apply_files
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline

GRAM = ["--model.method", "Mace", "--model.method.down", "gram", "--model.rank", "2", "--report_seeds", "0"]
PRESERVED = ["--model.domain_names", "[cat, bird, house, person]", "--model.fuse.domain", "0.5"]
GROUP = ["--model.method.groups", "{things: [dog, ship]}"]


def command(folder: Path, pipeline: Path, name: str) -> list[str]:
    return [*config(folder, pipeline, name, concepts_per_batch=3), *GRAM, *PRESERVED, *GROUP]


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gram")
    erase_main(command(folder, toy_pipeline, "whole"))
    return folder / "whole"


def test_edit_and_weights_agree_and_a_lora_of_it_loads(run: Path, toy_pipeline: Path) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    original = backbone_of(pipeline).key_values()
    refined = {name.removesuffix(".weight"): W for name, W in load_file(run / "refined.safetensors").items()}
    close(Edit.load(run / "edit.safetensors").weights(original), refined, FLOAT32_EDIT)
    before = noise_of(pipeline.unet)
    lora = export_run(run=str(run), format="lora", rank=32)
    apply_files(pipeline, [str(lora)])
    edited = DiffusionPipeline.from_pretrained(run / "pipeline")
    close(noise_of(pipeline.unet), noise_of(edited.unet), FLOAT16_PASS)
    above((noise_of(pipeline.unet) - before).abs().max(), MOVED)
    assert "down='gram', groups={'things': ['dog', 'ship']}" in (run / "pipeline" / "README.md").read_text()


def test_a_fusion_without_a_member_of_a_group_takes_its_loras_as_they_are(run: Path, tmp_path: Path) -> None:
    """With every concept it repeats the run, without the dog the weights differ."""
    same = load_file(fuse_run(str(run), str(tmp_path / "same"), save_pipeline=False) / "refined.safetensors")
    close(same, load_file(run / "refined.safetensors"), FLOAT32_EDIT)
    less = fuse_run(str(run), str(tmp_path / "less"), drop=["dog"], save_pipeline=False)
    found = load_file(less / "refined.safetensors")
    above(max((found[name] - same[name]).abs().max() for name in same), MOVED)


def test_a_stopped_run_ends_as_an_unbroken_one(
    run: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = [{"class_path": "support.runs.Stop", "init_args": {"after": 2}}]
    args = [*command(tmp_path, toy_pipeline, "cut"), "--data.pictures", str(run.parent / "pictures")]
    assert "2 of 3 steps of 'ship'" in exit_message([*args, "--trainer.callbacks", json.dumps(stop)], capsys)
    erase_main(args)
    assert "ship (2 steps), painter (2 steps), dog (2 steps)" in " ".join(capsys.readouterr().out.split())
    whole, resumed = (load_file(folder / "refined.safetensors") for folder in (run, tmp_path / "cut"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
