"""``predict`` and ``attack`` find a base model as ``fit`` does: by variant of its files, or by the layout of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from support.families import family
from support.finished import finished_run
from support.runs import exit_message

from mace_pl.cli import erase_main
from mace_pl.export.single_file import single_file
from mace_pl.models.pipeline import load_pipeline, model_fingerprint
from mace_pl.models.source import Source

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(params=["variant", "layout"])
def base(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path: Path) -> tuple[Path, dict[str, str], Path]:
    """A model, the settings that find it, and an edit of it."""
    if request.param == "variant":
        pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None, dtype=torch.float16)
        pipeline.save_pretrained(tmp_path / "half", variant="fp16")
        edit = finished_run(tmp_path / "run", tmp_path / "half", variant="fp16")
        pipeline.unet.save_pretrained(tmp_path / "half/unet", variant="other")  # now which is meant must be said
        return tmp_path / "half", {"variant": "fp16"}, edit
    pipeline = family("sd1", toy_pipeline)
    pipeline.save_pretrained(tmp_path / "layout")
    edit = finished_run(tmp_path / "run", tmp_path / "layout")
    for file in (tmp_path / "layout").rglob("*.safetensors"):
        file.unlink()
    tensors = {name: tensor.contiguous() for name, tensor in single_file(pipeline, Source(), None).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", {"layout": str(tmp_path / "layout")}, edit


def test_predict_and_attack_take_variant_and_layout(
    base: tuple[Path, dict[str, str], Path], toy_clip: Path, tmp_path: Path
) -> None:
    model, settings, edit = base
    wanted = model_fingerprint(load_pipeline(str(model), **settings))
    found = ["--model.pretrained", str(model), *(f"--model.{name}={value}" for name, value in settings.items())]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a ship\n", "utf-8")
    generated = ["--model.output", str(tmp_path / "generated"), "--data.file", str(prompts), "--model.steps", "1"]
    erase_main(["predict", *found, *generated, *TRAINER])
    manifest = json.loads((tmp_path / "generated/manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == wanted
    attack = ["--model.edited", str(edit), "--model.classifier", str(toy_clip), "--model.steps", "1"]
    attack += ["--model.output", str(tmp_path / "a.json"), "--model.strengths.token_steps", "1"]
    data = ["--data.names", "[ship, dog]", "--data.targets", "[ship]", "--data.seeds", "1", "--data.trials", "1"]
    erase_main(["attack", *found, *attack, *data, *TRAINER])
    said = json.loads((tmp_path / "a.json").read_text())["settings"]["fingerprints"]
    assert said.pop("original") == wanted not in said.values() and len(said) == 1


@pytest.mark.parametrize("command", ["predict", "attack"])
def test_a_revision_of_a_path_is_refused(
    toy_pipeline: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a ship\n", "utf-8")
    own = {
        "predict": ["--data.file", str(tmp_path / "prompts.txt")],
        "attack": ["--model.edited", str(tmp_path), "--data.names", "[ship, dog]", "--data.targets", "[ship]"],
    }
    place = ["--model.pretrained", str(toy_pipeline), "--model.revision", "main"]
    output = ["--model.output", str(tmp_path / "out.json")]
    assert "model.revision=main is for hub ids" in exit_message([command, *place, *output, *own[command]], capsys)
