"""A pipeline goes to the device of the Trainer once and leaves it once, whatever uses it in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.strategies import SingleDeviceStrategy
from support.finished import finished_run
from support.runs import config

from mace_pl.callbacks import harden_edit, report
from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.models.on_device import OnDevice

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where pipelines are moved, in order."""
    found: list[str] = []
    to = StableDiffusionPipeline.to

    def noted(self: StableDiffusionPipeline, device: Any) -> StableDiffusionPipeline:
        found.append(f"to {device}")
        return to(self, device)

    monkeypatch.setattr(StableDiffusionPipeline, "to", noted)
    return found


def test_a_pipeline_that_is_there_is_not_moved(toy_pipeline: Path, moves: list[str]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    moves.clear()
    placed, device = OnDevice(pipeline), torch.device("meta")
    placed.leave()
    with torch.inference_mode():
        placed.enter(device)
        placed.enter(device)
    assert moves == ["to meta"] and pipeline.vae.device == pipeline.text_encoder.device == device
    assert not any(parameter.is_inference() for parameter in pipeline.vae.parameters())


def test_fit(toy_pipeline: Path, toy_clip: Path, tmp_path: Path, moves: list[str]) -> None:
    """Anchors are chosen, the report's images and those of stage 2 are generated."""
    concepts = [{"target": "ship", "anchor": "auto"}, {"target": "dog", "anchor": "sky"}]
    erase_main([*config(tmp_path, toy_pipeline, "run", concepts), "--kept", "[cat, ground]"])
    assert moves == ["to cpu"] * 2


def test_a_network_that_was_taken_off_the_device_is_moved_again(toy_pipeline: Path, moves: list[str]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    placed, device, unet = OnDevice(pipeline), torch.device("meta"), pipeline.unet
    placed.enter(device)
    pipeline.unet = type(unet).from_config(unet.config)  # on the CPU, as Lightning leaves what a module registers
    moves.clear()
    placed.enter(device)
    assert moves == ["to meta"] and pipeline.unet.device == device


def test_whoever_generates_after_training_moves_the_pipeline_first(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's Trainer takes the network off a GPU when training ends; the report and stage 4 come after that."""
    found: list[str] = []

    def noted(owner: Any, name: str, what: str) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **given: Any) -> Any:
            found.append(what)
            return own(*args, **given)

        monkeypatch.setattr(owner, name, call)

    noted(SingleDeviceStrategy, "teardown", "taken off")
    noted(OnDevice, "enter", "moved")
    noted(report, "generate", "generated")
    noted(harden_edit.Job, "run", "hardened")
    small = ["rounds=1", "steps=1", "images=1", "preserved_images=1", "attack_steps=1", "batch=2", "preserved_batch=2"]
    harden = [word for pair in small for word in (f"--model.harden.{pair.split('=')[0]}", pair.split("=")[1])]
    concepts = [{"target": "ship", "anchor": "ground"}]
    erase_main([*config(tmp_path, toy_pipeline, "run", concepts), "--kept", "[cat]", *harden])
    assert found[found.index("taken off") :] == ["taken off", "moved", "hardened", "moved", "generated"]


def test_predict(toy_pipeline: Path, tmp_path: Path, moves: list[str]) -> None:
    rows = ["--data.names", "[ship, dog, cat]", "--data.batch_size", "1", "--model.steps", "1"]
    output = ["--model.pretrained", str(toy_pipeline), "--model.output", str(tmp_path / "images")]
    erase_main(["predict", *output, *rows, *TRAINER])
    assert moves == ["to cpu"] * 2


def test_attack_and_compare(toy_pipeline: Path, toy_clip: Path, tmp_path: Path, moves: list[str]) -> None:
    """The original and an edit at once; the original, then a pipeline that is freed on the device."""
    run = finished_run(tmp_path / "run", toy_pipeline)
    for form in ("refined", "pipeline"):
        export_run(run=str(run), format=form)
    models = ["--model.pretrained", str(toy_pipeline), "--model.classifier", str(toy_clip), "--model.steps", "1"]
    small = [*models, "--model.output", str(tmp_path / "s.json"), "--data.seeds", "1", *TRAINER]
    names = ["--data.names", "[ship, dog]"]
    moves.clear()
    erase_main(
        ["attack", "--model.edited", str(run), *small, *names, "--data.targets", "[ship]", "--data.attacks", "[]"]
    )
    assert moves == ["to cpu"] * 4
    moves.clear()
    whole = [str(run / "pipeline"), "--model.targets", "[ship]"]
    erase_main(["compare", str(run), *whole, *small, *names, "--model.overwrite", "true"])
    assert moves == ["to cpu"] * 4  # the pipeline was loaded before, to see whether it can be
