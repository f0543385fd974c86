"""Closed forms that train nothing, through whole runs: no image is generated, no LoRA is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.runs import config, exit_message
from support.tolerances import FLOAT32_EDIT, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.methods.closed_form import Preservation, refine
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.run import Run

METHODS = {"MaceRefinement": [], "UCE": ["--model.method.strength", "0.5"]}


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    more = ["--model.method", request.param, *METHODS[request.param], "--report_seeds", "0"]
    erase_main([*config(folder, toy_pipeline, request.param), *more])
    assert not (folder / "pictures").exists()
    return folder / request.param


def test_no_image_is_generated_and_no_lora_is_trained(run: Path) -> None:
    assert not (run / "stages").exists() and not (run / "report" / "before_after.png").exists()
    assert Edit.load(run / "edit.safetensors").factors == {}
    assert len(list((run / "statistics").glob("*.safetensors"))) == 3


def test_every_key_and_value_is_w_t(run: Path, toy_pipeline: Path) -> None:
    sums = [Run.load(run).concept(target)[0] for target in ("ship", "painter", "dog")]
    strength = 0.5 if run.name == "UCE" else 1.0
    F, G = (strength * torch.stack([getattr(s, name) for s in sums]).sum(0) for name in ("F", "G"))
    T = refine(F, G, Preservation(identity=1.0))
    weights = load_file(run / "refined.safetensors")
    original = backbone_of(load_pipeline(str(toy_pipeline))).key_values()
    assert len(weights) == len(original)
    for name, W in original.items():
        close(weights[f"{name}.weight"], (W.double() @ T).float(), FLOAT32_EDIT)


def test_what_is_exported_draws(run: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a photo of a ship", num_inference_steps=2)
    for form in ("lora", "unet"):
        assert export_run(run=str(run), format=form).exists()


def test_it_is_fused_again_without_some_concepts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fused = fuse_run(str(run), str(tmp_path / "fused"), drop=["dog"], save_pipeline=False)
    sums = [Run.load(run).concept(target)[0] for target in ("ship", "painter")]
    strength = 0.5 if run.name == "UCE" else 1.0
    F, G = (strength * torch.stack([getattr(s, name) for s in sums]).sum(0) for name in ("F", "G"))
    close(Edit.load(fused / "edit.safetensors").R, refine(F, G, Preservation(identity=1.0)).float(), FLOAT32_EDIT)
    assert "the run trained no LoRAs" in exit_message(["fuse", "--run", str(run), "--method", "added"], capsys)


def test_a_method_that_does_not_exist_is_named(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run")
    assert "model.method" in exit_message([*args, "--model.method", "ECU"], capsys)
