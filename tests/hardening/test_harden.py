"""Hardening on a toy run: what it writes, what it refuses, how it resumes, and how it is taken off."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from support.families import family
from support.finished import noise_of
from support.hardening import FEW, command
from support.runs import CONCEPTS, exit_message, launched
from support.seeds import seeded
from support.tolerances import EDITED_PASS, MOVED, RUN_FACTORS, above, close

from mace_pl.cli import erase_main
from mace_pl.data.concepts import ConceptData
from mace_pl.export.apply import apply_files
from mace_pl.files.artifacts import read_metadata
from mace_pl.hardening.harden import State, harden
from mace_pl.hardening.originals import Originals
from mace_pl.hardening.saved import Saved
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material
from mace_pl.hardening.wording import Wording
from mace_pl.methods.mace import Mace
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.run import Run
from mace_pl.stages.estimate import Estimator, Planned
from mace_pl.training.progress import said_by_tenths

BUSY = 4  # of time, as for the other stages


def test_the_lora_lies_on_top_of_the_edited_model_in_diffusers(run: Path, hardened: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(run / "pipeline", safety_checker=None)
    before = noise_of(pipeline.unet)
    pipeline.load_lora_weights(hardened, weight_name="hardening.safetensors")
    found = noise_of(pipeline.unet)
    merged = noise_of(UNet2DConditionModel.from_pretrained(hardened / "pipeline", subfolder="unet"))
    close(found, merged, EDITED_PASS)
    above((found - before).abs().max(), MOVED)


def test_it_changes_all_projections_of_attention_and_no_other_layer(hardened: Path, toy_pipeline: Path) -> None:
    before, after = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
        for folder in (toy_pipeline, hardened / "pipeline")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert changed == {name for name in before if ".attn" in name and name.endswith(parts)}


def test_the_run_is_read_with_its_hardening(hardened: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    merged = noise_of(UNet2DConditionModel.from_pretrained(hardened / "pipeline", subfolder="unet"))
    for place in (hardened, hardened / "refined.safetensors"):
        pipeline = load_pipeline(str(toy_pipeline))
        apply_files(pipeline, [str(place)])
        close(noise_of(pipeline.unet), merged, EDITED_PASS)
    erase_main(["export", "--run", str(hardened), "--format", "lora_diffusers", "--rank", "32"])
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    pipeline.load_lora_weights(hardened / "lora_diffusers")
    close(noise_of(pipeline.unet), merged, EDITED_PASS)


def test_fuse_takes_it_off_to_the_bit(
    run: Path, hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fuse", "--run", str(hardened), "--output_dir", str(tmp_path / "off"), "--save_pipeline", "false"]
    assert "--without_hardening true" in exit_message(args, capsys)
    erase_main([*args, "--without_hardening", "true"])
    for file in ("edit.safetensors", "refined.safetensors"):
        before, after = load_file(run / file), load_file(tmp_path / "off" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_report_says_losses_and_seconds_and_shows_images(run: Path, hardened: Path) -> None:
    facts = json.loads((hardened / "report" / "hardening.json").read_text())
    assert facts["targets"] == ["ship", "painter"] and len(facts["rounds"]) == 2
    assert all(own[name]["last"] > 0 for own in facts["rounds"] for name in ("tokens", "targets"))
    assert min(facts["seconds"].values()) > 0
    reach = json.loads((hardened / "report" / "reach.json").read_text())
    summary = (hardened / "report" / "summary.md").read_text()
    assert summary.startswith("# Hardened: ship, painter\n\n## Hardening: losses of")
    first, second = (f"{own['targets']['first']:.3g} → {own['targets']['last']:.3g}" for own in facts["rounds"])
    assert f" {first} |" in summary and f" {second} |" in summary and "## Without an image\n\n| target |" in summary
    assert summary.endswith("(before_after.png)\n") and Image.open(hardened / "report" / "before_after.png").width > 0
    card = (hardened / "pipeline" / "README.md").read_text()
    assert "a LoRA of rank 2 on" in card and "a LoRA of rank" not in (run / "pipeline" / "README.md").read_text()
    assert list(reach) == ["ship", "painter"] and {one["name"] for one in reach["ship"]["near"]} == {"cat", "bird"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over several threads differ in their last bits from process to process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_killed_processes_end_as_one_unbroken(run: Path, tmp_path: Path) -> None:
    """They share the sets and the samples of a step; one process goes on with what they had."""
    steps = {"rounds": 1, "steps": 8}
    erase_main(command(run, tmp_path / "whole", "--export", "[]", **steps))
    args = [*command(run, tmp_path / "killed", "--export", "[]", **steps), "--keep_every_n_steps", "1"]
    state = tmp_path / ".killed.training" / "hardening" / "state.safetensors"
    started = launched(args, 2)
    try:
        while not state.is_file() or "found.0" not in load_file(state) or "0.step" not in load_file(state):
            assert all(process.poll() is None for process in started), "they ended before they could be killed"
            time.sleep(0.01)
    finally:
        for process in started:
            process.kill()
    assert not (tmp_path / "killed").exists()
    erase_main(args)
    whole, resumed = (load_file(tmp_path / name / "hardening.safetensors") for name in ("whole", "killed"))
    for name, value in whole.items():
        close(resumed[name], value, RUN_FACTORS)
    assert not state.parents[1].exists()


def test_an_interrupted_hardening_resumes_to_the_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    erase_main(command(run, tmp_path / "whole", "--export", "[]"))
    args = [*command(run, tmp_path / "cut", "--export", "[]"), "--keep_every_n_steps", "1"]
    write = Saved.write

    def cut(self: Saved, originals: Originals, state: State) -> None:
        write(self, originals, state)
        if len(state.losses) == 5:  # a step of the second round
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Saved, "write", cut)
        assert "The same command resumes" in exit_message(args, capsys) + capsys.readouterr().err
    erase_main(args)
    assert "holds: 1 rounds and 1 steps" in " ".join(capsys.readouterr().out.split())
    whole, resumed = (load_file(tmp_path / name / "hardening.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_library_is_hardened_but_a_hardened_run_is_none(
    run: Path, hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "library"
    shutil.copytree(run, library)
    erase_main(["remove", "--run", str(library), "--targets", "[painter]"])
    erase_main(command(library, tmp_path / "out", "--export", "[]", "--preserved", "[cat,cubism]", rounds=1))
    found = Run.load(tmp_path / "out")
    made = read_metadata(tmp_path / "out" / "hardening.safetensors", "run")
    assert made["settings"]["prompts"]["names"] == ["cat", "cat in the style of cubism"], "one of the common styles"
    assert found.hardened and found.targets == ["ship"] and found.statistics_file("ship").parents[1] == found.folder
    assert found.config["output_dir"] == str(tmp_path / "out")
    assert "is hardened, for the edit" in exit_message(
        ["remove", "--run", str(hardened), "--targets", "[painter]"], capsys
    )


def test_a_model_of_two_text_encoders_is_hardened_through_both(toy_pipeline: Path) -> None:
    pipeline = family("sdxl", toy_pipeline)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False).eval()
    few = Hardening(**(FEW | {"rounds": 1}))
    shown = ("a photo of a ship", "a photo of a dog")
    wording = Wording(["ship"], [[("a ship", "a dog")]], [[shown]], ["cat"], ["a photo of a {}"])
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seeded(6)))
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    material = Material(pipeline, wording, Originals(latents[None, :2], latents[2:], [0, 0]), few, 1)
    found = harden(material, backbone_of(pipeline).text_layers(), 5.0)
    assert found.state.tensors["found.0"].shape == (1, 2, 2, 32 + 48)  # the widths of both encoders
    above(max(B.abs().max() for _, B in found.factors.values()), MOVED)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())


def test_the_estimate_is_about_what_it_takes(
    run: Path, toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of two on a quiet machine, as the estimates of the other stages; seconds of this process."""
    monkeypatch.setattr("mace_pl.hardening.harden.time", SimpleNamespace(perf_counter=time.process_time))
    work = {"steps": 12, "attack_steps": 12, "batch": 6, "preserved_batch": 6, "samples_at_once": 8}
    erase_main(command(run, tmp_path / "warm", **(work | {"steps": 1, "attack_steps": 1})))
    erase_main(command(run, tmp_path / "out", **work))
    seconds = json.loads((tmp_path / "out/report/hardening.json").read_text())["seconds"]
    passes = Hardening(**(FEW | work)).passes(2)
    assert passes.images == 2 * 2 + 2
    assert passes.back[:1] == [(24, 8)], "4 sets of 2 samples at once"
    assert passes.back[1:4] == passes.ahead == [(48, 4), (48, 6), (48, 8)], "12 a step and 6 empty prompts, 8 at once"
    assert passes.back[4:] == [(48, 3)], "the sets of a step move"
    assert replace(Hardening(**(FEW | work)), attack_moves=0.0).passes(2).back == passes.back[:4]
    data = ConceptData(CONCEPTS[:2], pictures=str(tmp_path / "images"), images_per_concept=1)
    planned = Planned(data, Mace(), 1, 2024, names=0, shown=0, hardening=replace(passes, images=0))
    stages = Estimator(load_pipeline(str(toy_pipeline)), planned, time.process_time).stages()
    found = next(one for one in stages if one.stage == "harden")
    assert "216 passes and back" in found.work
    taken = seconds["attacks"] + seconds["training"]
    assert taken / BUSY < found.taken.seconds < taken * BUSY, (found.taken, taken)


def test_without_a_bar_each_tenth_of_the_steps_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    told = said_by_tenths("harden", 20, "steps")
    for steps in (1, 2, 0, 17):  # the first may be those of an interrupted one
        told(steps)
    assert capsys.readouterr().out.splitlines() == ["harden: 3 of 20 steps", "harden: 20 of 20 steps"]
