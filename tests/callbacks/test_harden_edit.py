"""Stage 4 of ``fit``: the hardening of the command, on any number of processes and after a kill."""

import json
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from support.finished import noise_of
from support.runs import CONCEPTS, config, exit_message, nodes
from support.tolerances import EDITED_PASS, MOVED, RUN_FACTORS, above, close

from mace_pl.cli import erase_main
from mace_pl.run import Run

FEW = {"rank": 2, "rounds": 2, "steps": 3, "found": 2, "tokens": 2, "attack_steps": 2, "attack_samples": 2}
FEW |= {"images": 2, "preserved_images": 2, "batch": 4, "preserved_batch": 2}


def fit(folder: Path, base: Path, name: str, *more: str, **harden: object) -> list[str]:
    few = {"images_per_concept": 1, "image_steps": 2, "steps_per_concept": 2}
    args = [*config(folder, base, name, CONCEPTS[:2], **few), "--report_seeds", "0"]
    args += ["--model.domain_names", "[cat]", "--model.refine.domain", "0.1"]
    return [*args, "--model.harden", json.dumps(FEW | harden), *more]


@pytest.fixture(scope="module")
def whole(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage4")
    erase_main(fit(folder, toy_pipeline, "whole"))
    return folder / "whole"


def test_the_run_is_that_of_fit_and_then_harden(whole: Path, toy_pipeline: Path) -> None:
    plain = ["--model.harden", "null"]
    erase_main([*fit(whole.parent, toy_pipeline, "plain"), *plain])
    few = [word for name, value in FEW.items() for word in (f"--harden.{name}", str(value))]
    erase_main(["harden", "--run", str(whole.parent / "plain"), "--output_dir", str(whole.parent / "after"), *few])
    edits = [load_file(folder / "edit.safetensors") for folder in (whole, whole.parent / "plain")]
    assert all(torch.equal(edits[0][name], edits[1][name]) for name in edits[1])
    one, other = (load_file(folder / "hardening.safetensors") for folder in (whole, whole.parent / "after"))
    assert one.keys() == other.keys()
    for name in one:
        close(one[name], other[name], RUN_FACTORS)
    facts = json.loads((whole / "report" / "hardening.json").read_text())
    assert facts["targets"] == ["ship", "painter"] and len(facts["rounds"]) == 2
    said = json.loads((whole / "report" / "progress.json").read_text())
    assert (said["stage"], said["step"], said["steps"]) == ("harden", 20, 20)  # 2 rounds of 2 targets: 3 steps, 2 sets
    summary = (whole / "report" / "summary.md").read_text()
    assert summary.startswith("# Erased concepts\n") and "\n\n## Hardening: losses of" in summary
    pipeline = StableDiffusionPipeline.from_pretrained(whole / "pipeline", safety_checker=None)
    hardened = noise_of(pipeline.unet)
    alone = UNet2DConditionModel.from_pretrained(whole.parent / "plain" / "pipeline", subfolder="unet")
    above((hardened - noise_of(alone)).abs().max(), MOVED)
    edited = StableDiffusionPipeline.from_pretrained(whole.parent / "plain" / "pipeline", safety_checker=None)
    edited.load_lora_weights(whole, weight_name="hardening.safetensors")
    close(noise_of(edited.unet), hardened, EDITED_PASS)


def test_fuse_takes_it_off_and_out_of_the_configuration(whole: Path) -> None:
    args = ["fuse", "--run", str(whole), "--output_dir", str(whole.parent / "off"), "--save_pipeline", "false"]
    erase_main([*args, "--without_hardening", "true"])
    off = Run.load(whole.parent / "off")
    assert Run.load(whole).hardened and not off.hardened and off.config["model"]["harden"] is None
    edits = [load_file(folder / "edit.safetensors") for folder in (whole, whole.parent / "off")]
    assert all(torch.equal(edits[0][name], edits[1][name]) for name in edits[0])


def test_two_killed_processes_end_as_one_unbroken(whole: Path, toy_pipeline: Path) -> None:
    """Killed in stage 4; one process goes on with what they had."""
    args = [*fit(whole.parent, toy_pipeline, "killed"), "--keep_every_n_steps", "1"]
    state = whole.parent / ".killed.training" / "hardening" / "state.safetensors"
    started = nodes(args, 2)
    try:
        while not state.is_file() or "found.0" not in load_file(state) or "0.step" not in load_file(state):
            assert all(process.poll() is None for process in started), "they ended before they could be killed"
            time.sleep(0.01)
    finally:
        for process in started:
            process.kill()
    assert not (whole.parent / "killed").exists()
    erase_main(args)
    one, other = (load_file(whole.parent / name / "hardening.safetensors") for name in ("whole", "killed"))
    for name in one:
        close(one[name], other[name], RUN_FACTORS)
    assert not state.parents[1].exists()


@pytest.mark.parametrize(
    ("harden", "said"),
    [({"rank": 99}, "model.harden.rank=99 must be at most 32"), ({"tokens": 75}, "model.harden.tokens=75")],
)
def test_what_cannot_be_is_refused_before_anything_is_generated(
    harden: dict[str, int], said: str, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in exit_message(fit(tmp_path, toy_pipeline, "none", **harden), capsys)
    assert not (tmp_path / "pictures").exists() and not (tmp_path / "none").exists()
