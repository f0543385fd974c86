"""``predict``: every row the same image in any batch and on any number of ranks; what a folder says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from support.finished import finished_run
from support.forks import SCRIPT, ranks
from support.runs import exit_message, naming
from support.tolerances import OTHER_IMAGE, above, same_images

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.images.files import read_images
from mace_pl.images.manifest import read_folder
from mace_pl.models.sampling import generate
from mace_pl.modules.sampler import Sampler

ROWS = 9
PROMPTS = [
    f"a photo of a {name}" for name in ("ship", "dog", "cat", "bird", "house", "person", "painter", "sky", "ground")
]


def table(folder: Path, lines: list[str] | None = None) -> Path:
    path = folder / "prompts.csv"
    rows = [f"{prompt},{i + 3},group {i % 2}" for i, prompt in enumerate(PROMPTS)]
    path.write_text("\n".join(["prompt,seed,group", *rows] if lines is None else lines) + "\n", "utf-8")
    return path


def command(model: Path, output: Path, file: Path, *more: str) -> list[str]:
    options = ["--model.pretrained", str(model), "--model.output", str(output), "--data.file", str(file)]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
    return ["predict", *options, "--model.steps", "2", *trainer, *more]


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(p).astype(int) for p in read_images(read_folder(folder, "test"), "test")]


@pytest.fixture(scope="module")
def one_by_one(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    erase_main(command(toy_pipeline, folder / "one", table(folder), "--data.batch_size", "1"))
    return folder / "one"


def same(folder: Path, other: Path) -> None:
    first, second = pixels(folder), pixels(other)
    assert len(first) == len(second) == ROWS
    assert not np.array_equal(first[0], first[1])
    same_images(second, first)


@pytest.mark.parametrize("size", [4, 7])
def test_the_batch_does_not_change_an_image(one_by_one: Path, toy_pipeline: Path, tmp_path: Path, size: int) -> None:
    erase_main(command(toy_pipeline, tmp_path / "out", table(tmp_path), "--data.batch_size", str(size)))
    same(one_by_one, tmp_path / "out")


def test_two_ranks_generate_what_one_generates(one_by_one: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    args = command(toy_pipeline, tmp_path / "out", table(tmp_path), "--data.batch_size", "4")
    args[args.index("--trainer.devices") + 1] = "2"
    for done in ranks(SCRIPT, [*args, "--trainer.strategy", "ddp"]):
        assert done.returncode == 0, done.stderr[-3000:]
    same(one_by_one, tmp_path / "out")


def test_an_image_is_what_the_pipeline_generates(one_by_one: Path, toy_pipeline: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    generated = generate(pipeline, [PROMPTS[4]], [7], steps=2, guidance=5.0)[0]
    same_images([generated], [pixels(one_by_one)[4]])


def test_manifest_and_png_say_how_an_image_was_made(one_by_one: Path) -> None:
    manifest = json.loads((one_by_one / "manifest.json").read_text())
    row = manifest["rows"][5]
    expected = {"prompt": PROMPTS[5], "seed": 8, "columns": {"group": "group 1"}}
    assert row == {"file": "000005_a_photo_of_a_person_8.png"} | expected
    with Image.open(one_by_one / row["file"]) as image:
        assert image.text["prompt"] == PROMPTS[5] and image.text["seed"] == "8"
        assert json.loads(image.text["model"])["fingerprint"] == manifest["model"]["fingerprint"]
        assert json.loads(image.text["settings"])["steps"] == 2


def test_an_interrupted_run_goes_on_and_another_model_is_refused(
    one_by_one: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(one_by_one, folder)
    files = read_folder(folder, "test")
    kept = {file: file.stat().st_mtime_ns for file in files[::2]}
    for file in files[1::2]:
        file.unlink()
    again = command(toy_pipeline, folder, one_by_one.parent / "prompts.csv", "--data.batch_size", "3")
    erase_main(again)
    assert f"{len(files)} images are in {folder}" in capsys.readouterr().out
    same(one_by_one, folder)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    other = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    with torch.no_grad():
        other.unet.conv_in.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    refused = command(tmp_path / "other", folder, one_by_one.parent / "prompts.csv")
    assert "a run that had other weights. Give" in exit_message(refused, capsys)
    assert "a run that had other settings. Give" in exit_message([*again, "--model.steps", "3"], capsys)
    (tmp_path / "else.txt").write_text("a photo of a cat\n")
    assert "a run that had other prompts. Give" in exit_message(
        [*again, "--data.file", str(tmp_path / "else.txt")], capsys
    )
    same(one_by_one, folder)
    erase_main([*refused, "--model.overwrite", "true"])
    above(abs(pixels(folder)[0] - pixels(one_by_one)[0]).max(), OTHER_IMAGE)


def test_nothing_is_removed_before_its_replacement_is_complete(
    toy_pipeline: Path, one_by_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = tmp_path / "out", Sampler.predict_step
    shutil.copytree(one_by_one, folder)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    few = ["--model.steps", "3", "--data.batch_size", "1"]
    again = command(toy_pipeline, folder, one_by_one.parent / "prompts.csv", *few)

    def cut(self: Sampler, batch: Any, batch_idx: int) -> int:
        if batch_idx == 2:
            raise RuntimeError("the power is gone")
        return plain(self, batch, batch_idx)

    for _ in range(2):  # and again after an interrupted replacement
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="the power is gone"):
            patched.setattr(Sampler, "predict_step", cut)
            erase_main([*again, "--model.overwrite", "true"])
        assert {f.name: f.read_bytes() for f in (folder / ".replaced").iterdir()} == before
    erase_main([*again, "--model.overwrite", "true"])
    assert sorted(f.name for f in folder.iterdir()) == sorted(before)
    assert (folder / "manifest.json").read_bytes() != before["manifest.json"]


def test_edits_and_loras_are_applied_on_the_fly(toy_pipeline: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    for form in ("refined", "lora", "pipeline"):
        export_run(run=str(run), format=form, rank=8) if form == "lora" else export_run(run=str(run), format=form)
    applied = {"edit": run / "edit.safetensors", "run": run, "refined": run / "refined.safetensors"}
    names = ["--data.limit", "2"]
    for name, file in applied.items():
        more = ["--model.apply", f"[{file}]", *names]
        erase_main(command(toy_pipeline, tmp_path / f"by_{name}", table(tmp_path), *more))
    erase_main(command(run / "pipeline", tmp_path / "pipeline", table(tmp_path), *names))
    erase_main(command(toy_pipeline, tmp_path / "base", table(tmp_path), *names))
    lora = next((run / "lora").glob("*.safetensors"))
    erase_main(command(toy_pipeline, tmp_path / "lora", table(tmp_path), "--model.apply", f"[{lora}]", *names))
    expected = pixels(tmp_path / "pipeline")
    above(abs(expected[0] - pixels(tmp_path / "base")[0]).max(), OTHER_IMAGE)
    for name in applied:
        same_images(pixels(tmp_path / f"by_{name}"), expected)
    program = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    program.load_lora_weights(str(lora.parent), weight_name=lora.name)  # unmerged, as another program would
    same_images(generate(program, [PROMPTS[0]], [3], steps=2, guidance=5.0), pixels(tmp_path / "lora")[:1])
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("base", "lora")]
    assert manifests[1]["model"]["apply"] == ["lora/run.safetensors"]
    assert not [name for folder in ("base", "lora", "by_run") for name in naming(tmp_path / folder, tmp_path.parent)]
    assert manifests[0]["model"]["fingerprint"] != manifests[1]["model"]["fingerprint"]


def test_scheduler_size_negative_prompt_and_names(toy_pipeline: Path, tmp_path: Path) -> None:
    base = ["predict", "--model.pretrained", str(toy_pipeline), "--model.steps", "3", "--data.seeds", "2"]
    base += ["--data.names", "[ship, dog]", "--data.templates", "['{}', 'art of {}']"]
    base += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--model.guidance", "20"]
    more = ["--model.scheduler", "EulerAncestralDiscreteScheduler", "--model.height", "24", "--model.width", "16"]
    erase_main([*base, "--model.output", str(tmp_path / "plain")])
    erase_main([*base, "--model.output", str(tmp_path / "other"), *more, "--model.negative", "a dog"])
    rows = json.loads((tmp_path / "other" / "manifest.json").read_text())["rows"]
    generated = [(row["prompt"], row["seed"]) for row in rows[2:6]]
    assert generated == [("dog", 0), ("dog", 1), ("art of ship", 0), ("art of ship", 1)]
    assert pixels(tmp_path / "other")[0].shape == (24, 16, 3)
    erase_main([*base, "--model.output", str(tmp_path / "negative"), "--model.negative", "a dog"])
    above(abs(pixels(tmp_path / "negative")[0] - pixels(tmp_path / "plain")[0]).max(), OTHER_IMAGE)


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        (["text,seed", "a ship,1"], [], "no column 'prompt', its columns are text, seed"),
        (["prompt,seed", "a ship,one"], [], "line 2 has seed 'one'"),
        (["prompt,seed", "a ship,-1"], [], "between 0 and"),
        (["prompt,seed", ",1"], [], "line 2 has an empty text"),
        (["prompt,seed", "a ship"], [], "line 2 has other fields"),
        (["prompt,seed"], [], "holds no prompt"),
        (None, ["--data.names", "[ship]"], "either --data.file or --data.names"),
        (None, ["--data.file", "nowhere.csv"], "nowhere.csv does not exist"),
        (None, ["--model.scheduler", "Magic"], "model.scheduler=Magic does not go with the model"),
        (None, ["--model.width", "20"], "multiple of 8"),
        (None, ["--model.apply", "[nowhere.safetensors]"], "nowhere.safetensors does not exist"),
        (None, ["--model.apply", "[FOREIGN]"], "FOREIGN"),
        (None, ["--model.output", "FOLDER"], "has no manifest.json"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    toy_pipeline: Path,
    tmp_path: Path,
    lines: list[str] | None,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"unet.nothing.lora_A.weight": torch.ones(1, 2), "unet.nothing.lora_B.weight": torch.ones(2, 1)}, foreign)
    places = {"FOREIGN": str(foreign), "FOLDER": str(tmp_path)}
    for name, place in places.items():
        more, message = [m.replace(name, place) for m in more], message.replace(name, place)
    said = exit_message(command(toy_pipeline, tmp_path / "out", table(tmp_path, lines), *more), capsys)
    assert message in said
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_decode_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        read_folder(tmp_path, "model.reference")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(ValueError, match=r"model.reference: .*broken.png cannot be read as an image"):
        read_images(read_folder(tmp_path, "model.reference"), "model.reference")
