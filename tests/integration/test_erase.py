"""The whole method on a toy pipeline: what is written, that it loads elsewhere, and that it repeats itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.forks import forked
from support.runs import CONCEPTS, checksums, config, exit_message, statistics, user_images
from support.tolerances import FLOAT32_EDIT, MOVED, PRESERVED, RUN_WEIGHTS, above, below, close, same_images

from mace_pl import erase
from mace_pl.cli import erase_main
from mace_pl.methods.closed_form import gram
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.sampling import generate
from mace_pl.models.text_encoding import encode_prompts, encoder_fingerprint
from mace_pl.run import Run


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("erase")
    before = checksums(toy_pipeline)
    erase_main(config(folder, toy_pipeline, "run"))
    assert checksums(toy_pipeline) == before
    return folder / "run"


def test_everything_promised_is_written(run: Path) -> None:
    names = {str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()}
    for target in ("ship", "painter", "dog"):
        assert {f"stages/lora/{target}.safetensors", f"statistics/{target}.safetensors"} <= names
    assert {"config.yaml", "edit.safetensors", "refined.safetensors", "pipeline/model_index.json"} <= names
    assert {"report/before_after.png", "report/losses.png", "report/metrics.json", "report/summary.md"} <= names
    rows = json.loads((run / "report/preflight.json").read_text())
    assert [row["target"] for row in rows] == ["ship", "painter", "dog"]
    assert all(len(row["spans"]) >= 30 and row["accuracy"] is None for row in rows)
    reach = json.loads((run / "report/reach.json").read_text())
    assert list(reach) == ["ship", "painter", "dog"] and all(own["size"] > 0 and own["near"] for own in reach.values())
    losses = json.loads((run / "report/metrics.json").read_text())["losses"]
    assert {t: m["steps"] for t, m in losses.items()} == {"ship": 3, "painter": 3, "dog": 3}
    assert not [f for f in run.parent.rglob("*.partial")]


def images(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    generated = generate(pipeline, ["a photo of a ship", "a cat"], [0, 1], steps=2)
    return torch.from_numpy(np.stack([np.asarray(p) for p in generated])).int()


def test_files_have_the_permissions_of_any_new_file(run: Path) -> None:
    (run.parent / "plain").write_text("")
    expected = (run.parent / "plain").stat().st_mode
    assert {file.stat().st_mode for file in run.rglob("*") if file.is_file()} == {expected}


def test_three_forms_of_the_edit_generate_the_same_images(run: Path, toy_pipeline: Path) -> None:
    whole = StableDiffusionPipeline.from_pretrained(run / "pipeline", safety_checker=None)
    refined = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    original = images(refined)
    result = refined.unet.load_state_dict(load_file(run / "refined.safetensors"), strict=False)
    assert not result.unexpected_keys
    compact = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    backbone_of(compact).set_key_values(Edit.load(run / "edit.safetensors").weights(backbone_of(compact).key_values()))
    expected = images(whole)
    assert (expected != original).any()
    for other in (refined, compact):
        same_images(images(other), expected)


def test_the_same_command_gives_the_same_weights_whatever_is_trained_at_once(run: Path, toy_pipeline: Path) -> None:
    first = load_file(run / "refined.safetensors")
    erase_main(config(run.parent, toy_pipeline, "again"))
    again = load_file(run.parent / "again" / "refined.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    erase_main(config(run.parent, toy_pipeline, "alone", concepts_per_batch=1))
    alone = load_file(run.parent / "alone" / "refined.safetensors")
    for name in first:
        close(first[name], alone[name], RUN_WEIGHTS)


def test_python_does_what_the_command_does(run: Path, toy_pipeline: Path) -> None:
    written = erase(
        model={"pretrained": str(toy_pipeline), "lr": 0.01, "refine": {"identity": 1.0}, "fuse": {"identity": 1.0}},
        data={
            "concepts": CONCEPTS,
            "pictures": str(run.parent / "pictures"),
            "images_per_concept": 2,
            "image_steps": 2,
            "image_guidance": 7.5,
            "steps_per_concept": 3,
        },
        trainer={"accelerator": "cpu", "enable_progress_bar": False},
        output_dir=str(run.parent / "python"),
    )
    assert written.folder == run.parent / "python" and written.targets == ["ship", "painter", "dog"]
    first, other = load_file(run / "refined.safetensors"), load_file(written.place("refined"))
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_fusing_again_drops_and_reweights_without_training(run: Path, toy_pipeline: Path) -> None:
    out = run.parent / "fused"
    erase_main(["fuse", "--run", str(run), "--output_dir", str(out)])
    first, same = load_file(run / "refined.safetensors"), load_file(out / "refined.safetensors")
    for name in first:
        close(first[name], same[name], FLOAT32_EDIT)
    erase_main(["fuse", "--run", str(run), "--output_dir", str(run.parent / "drop"), "--drop", "ship"])
    erase_main(
        ["fuse", "--run", str(run), "--output_dir", str(run.parent / "none"), "--weights", "ship=0,dog=0,painter=0"]
    )
    none = load_file(run.parent / "none" / "refined.safetensors")
    original = backbone_of(StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)).key_values()
    for name, weight in original.items():
        close(none[f"{name}.weight"], weight, FLOAT32_EDIT)
    dropped = load_file(run.parent / "drop" / "refined.safetensors")
    above(max((first[name] - dropped[name]).abs().max() for name in first), MOVED)
    assert len(Edit.load(run.parent / "drop" / "edit.safetensors").factors) == len(first)


def test_a_run_is_written_without_fusion_or_without_loras(run: Path, toy_pipeline: Path) -> None:
    written = {}
    for name, more in {
        "refined": ["--method", "refined"],
        "added": ["--method", "added"],
        "stiff": ["--fuse", "{identity: 1.0e+12}"],  # W* goes to W'
        "stay": ["--refine", "{identity: 1.0e+12}", "--method", "refined"],
    }.items():
        erase_main(["fuse", "--run", str(run), "--output_dir", str(run.parent / name), "--save_pipeline=false", *more])
        written[name] = load_file(run.parent / name / "refined.safetensors")
    with safe_open(run.parent / "stay" / "edit.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["mace_pl"])
    assert (said["method"], said["refine"]["identity"], said["fuse"]["identity"]) == ("refined", 1e12, 1.0)
    loras = [Run.load(run).concept(c["target"])[1] for c in CONCEPTS]
    pipeline, moved = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None), []
    for name, weight in backbone_of(pipeline).key_values().items():
        refined = written["refined"][f"{name}.weight"]
        added = refined + sum(lora[name][1] @ lora[name][0] for lora in loras)
        assert not torch.equal(refined, weight)
        moved.append(float((added - refined).abs().max()))
        close(written["added"][f"{name}.weight"], added, FLOAT32_EDIT)
        close(written["stiff"][f"{name}.weight"], refined, FLOAT32_EDIT)
        close(written["stay"][f"{name}.weight"], weight, FLOAT32_EDIT)
    above(max(moved), MOVED)  # else the lines above tell nothing apart


def test_a_weight_of_what_a_run_does_not_have_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for term in ("prior", "domain"):
        args = ["fuse", "--run", str(run), "--output_dir", str(run.parent / "odd"), "--fuse", f"{{{term}: 1.0}}"]
        assert f"the run has no model.{term}" in exit_message(args, capsys)
    assert not (run.parent / "odd").exists()


@pytest.mark.parametrize("change", ["{strength: 1.0}", "{identity: -1.0}", "{identity: .nan}"])
def test_a_term_that_fusion_does_not_have_is_refused(
    run: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exit_message(["fuse", "--run", str(run), "--output_dir", str(run.parent / "odd"), "--fuse", change], capsys)
    assert "must be one of identity, prior, domain and growth, each at least 0" in said
    assert not (run.parent / "odd").exists()


def test_an_existing_output_is_refused(run: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checksums(run)
    assert "--overwrite true" in exit_message(config(run.parent, toy_pipeline, "run"), capsys)
    assert checksums(run) == before


def test_the_users_own_images_and_masks_are_used(tmp_path: Path, toy_pipeline: Path) -> None:
    concept = user_images(tmp_path / "own", [16, 16], [(16, 255), (16, 255)])
    erase_main(config(tmp_path, toy_pipeline, "out", [concept]))
    assert (tmp_path / "out/edit.safetensors").is_file()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [".originals"]  # those of the report


def test_two_ranks_give_the_weights_of_one(run: Path, toy_pipeline: Path) -> None:
    args = config(run.parent, toy_pipeline, "two")
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    script = Path(__file__).resolve().parents[2] / "erase.py"
    done = subprocess.run([sys.executable, str(script), *args, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, other = load_file(run / "refined.safetensors"), load_file(run.parent / "two" / "refined.safetensors")
    for name in first:
        close(first[name], other[name], RUN_WEIGHTS)
    shown = [Image.open(folder / "report" / "before_after.png") for folder in (run, run.parent / "two")]
    same_images(*(np.asarray(image.convert("RGB")) for image in shown))  # each rank generates its share of them


def test_a_full_disk_leaves_nothing_half_written(run: Path, toy_pipeline: Path) -> None:
    args = config(run.parent, toy_pipeline, "full", templates=["a photo of {}"])
    code = (
        "import resource, sys; from mace_pl.cli import erase_main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); erase_main(sys.argv[1:])"
    )
    (run.parent / "full_disk.py").write_text(code)
    done = forked(run.parent / "full_disk.py", args)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "error: cannot write" in message and "Free some space" in message
    assert not (run.parent / "full").exists()
    left = [path.name for path in run.parent.glob(".*full*")]
    assert left in ([], [".full.training"])  # what was trained, for the same command with more space
    assert not list(run.parent.rglob("*.partial"))


def test_statistics_preserve_what_they_sum(tmp_path: Path, toy_pipeline: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    preserved = encode_prompts(pipeline, ["a photo of a cat", "a house on a blue background"]).flatten(0, 1)
    path = statistics(tmp_path / "prior.safetensors", encoder_fingerprint(pipeline), gram(preserved, preserved))
    drift = {}
    original = backbone_of(pipeline).key_values()
    for weight in ("0.0", "100000.0"):
        more = ["--model.prior", str(path), "--model.refine.prior", weight, "--model.fuse.prior", weight]
        erase_main([*config(tmp_path, toy_pipeline, f"w{weight}"), *more])
        edited = load_file(tmp_path / f"w{weight}" / "refined.safetensors")
        drift[weight] = sum(float(((edited[f"{n}.weight"] - w) @ preserved.T).norm()) for n, w in original.items())
    below(drift["100000.0"] / drift["0.0"], PRESERVED)
