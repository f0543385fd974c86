"""Models as they lie on disk: single checkpoints, hub ids with revision and variant, float16, shards."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.families import family
from support.finished import images
from support.runs import checksums, config, content_hash, exit_message, naming
from support.tolerances import FLOAT16_WEIGHTS, FLOAT32_PASS, FLOAT32_SUMS, close, same_images

from mace_pl.cli import erase_main
from mace_pl.errors import UserError
from mace_pl.export.single_file import single_file, unet_names
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import encode_prompts

CONCEPTS = [{"target": "ship", "anchor": "the sky"}]
FEW = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 2}
HEADER = {
    "format": "pt",
    "modelspec.title": "toy",
    "modelspec.license": "mine",
    "modelspec.architecture": "a-class-of-its-own",
    "modelspec.hash_sha256": "0xold",
    "modelspec.thumbnail": "data:image/jpeg;base64,old",
    "sshs_model_hash": "old",
    "sd_merge_models": "old",
}
ERASE = Path(__file__).resolve().parents[2] / "erase.py"


def names(folder: Path) -> dict[str, str]:
    return {str(Path(name).relative_to(folder)): value for name, value in checksums(folder).items()}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A float16 checkpoint with tensors of its own, a layout without weights, and the folder that both came from."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = family(request.param, toy_pipeline).to(torch.float16)
    pipeline.save_pretrained(folder / "base")
    own = {name: tensor.contiguous() for name, tensor in single_file(pipeline, Source(), torch.float16).items()}
    start = "model.diffusion_model."
    average = {n.removeprefix(start).replace(".", ""): t.clone() for n, t in own.items() if n.startswith(start)}
    second = {f"model_ema.diffusion_model{name}": tensor for name, tensor in average.items()}
    tensors = own | second | {"alphas_cumprod": torch.ones(3), "model_ema.decay": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors", metadata=HEADER)
    shutil.copytree(folder / "base", folder / "layout", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "model.safetensors", folder / "layout", folder / "base"


@pytest.fixture(scope="module")
def run(checkpoint: Any) -> Path:
    file, layout, _ = checkpoint
    before = checksums(file.parent)
    erase_main([*config(file.parent, file, "run", CONCEPTS, **FEW), "--model.layout", str(layout)])
    after = checksums(file.parent)
    assert {name: after[name] for name in before} == before
    return file.parent / "run"


def test_a_checkpoint_comes_out_as_a_checkpoint(checkpoint: Any, run: Path) -> None:
    file, layout, base = checkpoint
    assert not (run / "pipeline").exists()
    old, new = load_file(file), load_file(run / "model.safetensors")
    assert len(old) > len(new)
    old = {name: tensor for name, tensor in old.items() if not name.startswith("model_ema.")}  # would not be edited
    assert {name: tensor.dtype for name, tensor in old.items()} == {name: tensor.dtype for name, tensor in new.items()}
    own = unet_names(DiffusionPipeline.from_pretrained(base).unet)
    layers = (".attn2.to_k.", ".attn2.to_v.", "add_embedding.linear_1.weight")  # the last reads SDXL's pooled text
    edited = {n for n, parts in own.items() if any(layer in parts[0] for layer in layers)}
    assert {name for name in old if not torch.equal(old[name], new[name])} == edited
    with safe_open(str(run / "model.safetensors"), framework="pt") as opened:
        said = opened.metadata()
    assert "mace_pl" in said and not any("old" in value for value in said.values())
    kept = ("run", "mine", "a-class-of-its-own")
    assert tuple(said[f"modelspec.{key}"] for key in ("title", "license", "architecture")) == kept
    assert said["modelspec.hash_sha256"] == content_hash(run / "model.safetensors")
    refined = load_file(run / "refined.safetensors")
    for name in edited:
        torch.testing.assert_close(new[name], refined[own[name][0]], rtol=0, atol=0)


def test_a_checkpoint_is_edited_as_its_folder_is(checkpoint: Any, run: Path) -> None:
    file, _, base = checkpoint
    erase_main(config(file.parent, base, "folder", CONCEPTS, **FEW))
    first, other = (load_file(r / "refined.safetensors") for r in (run, file.parent / "folder"))
    assert {t.dtype for t in first.values()} == {torch.float16}
    for name, weight in first.items():
        close(weight.float(), other[name].float(), FLOAT16_WEIGHTS)


def test_a_checkpoint_can_be_written_as_a_folder(checkpoint: Any, run: Path, tmp_path: Path) -> None:
    _, layout, base = checkpoint
    written = tmp_path / "pipeline"
    erase_main(["export", "--run", str(run), "--format", "pipeline", "--output", str(written)])
    passed = {name: value for name, value in names(layout).items() if name.startswith(("tokenizer", "scheduler"))}
    found = names(written)
    assert not naming(written, written.parent.parent)
    assert passed and {name: found[name] for name in passed} == passed
    for part in ("vae", "text_encoder"):
        old, new = (
            {k: v for f in (r / part).glob("*.safetensors") for k, v in load_file(f).items()} for r in (base, written)
        )
        prefix = "text_model." if part == "text_encoder" else ""  # which older programs need
        assert {prefix + name for name in old} == set(new)
        assert all(torch.equal(tensor, new[prefix + name]) for name, tensor in old.items())
        assert {t.dtype for t in new.values() if t.is_floating_point()} == {torch.float16}
    again = DiffusionPipeline.from_pretrained(written, dtype=torch.float32)
    cls = type(again)
    settings = {"config": str(layout), "local_files_only": True, "dtype": torch.float32}
    single = cls.from_single_file(str(run / "model.safetensors"), **settings)
    same_images(images(again), images(single))


def test_statistics_of_a_checkpoint_are_those_of_its_folder(checkpoint: Any, tmp_path: Path) -> None:
    file, layout, base = checkpoint
    whole, single = load_pipeline(str(base)), load_pipeline(str(file), layout=str(layout))
    close(encode_prompts(single, ["a ship"]), encode_prompts(whole, ["a ship"]), FLOAT32_PASS)
    grams = []
    for name, args in (("file", [file, "--model.layout", layout]), ("base", [base])):
        output = tmp_path / f"{name}.safetensors"
        command = [
            "cache",
            "--model.pretrained",
            *map(str, args),
            "--model.output",
            str(output),
            "--data.names",
            "[cat]",
        ]
        erase_main(
            [*command, "--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.templates", "['{}']"]
        )
        grams.append(load_file(output)["gram"])
    close(grams[0], grams[1], FLOAT32_SUMS)


@pytest.fixture
def hub(tmp_path: Path, toy_pipeline: Path) -> Path:
    """A cache of the hub as it is left by a download: two revisions, the second with float16 files in shards only."""
    repo = tmp_path / "hub/models--somebody--toy"
    (repo / "refs").mkdir(parents=True)
    for revision, commit in (("main", "1" * 40), ("half", "2" * 40)):
        (repo / "refs" / revision).write_text(commit)
        shutil.copytree(toy_pipeline, repo / "snapshots" / commit)
    half = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None, dtype=torch.float16)
    shutil.rmtree(repo / "snapshots" / ("2" * 40))
    half.save_pretrained(repo / "snapshots" / ("2" * 40), variant="fp16", max_shard_size="300KB")
    return repo


def test_a_hub_id_with_revision_and_variant_is_read_from_the_cache(hub: Path, tmp_path: Path) -> None:
    args = config(tmp_path, Path("somebody/toy"), "run", CONCEPTS, **FEW)
    more = ["--model.revision", "half", "--model.variant", "fp16"]
    env = os.environ | {"HF_HUB_CACHE": str(hub.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ERASE), *args, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    base, written = hub / "snapshots" / ("2" * 40), tmp_path / "run/pipeline"
    before, after = names(base), names(written)
    shards = {name for name in before if name.startswith("unet/") and name.endswith(".safetensors")}
    assert len(shards) > 1 and all(".fp16" in name for name in shards)
    plain = {name: name.replace(".fp16", "", 1) for name in before}
    assert set(after) - set(plain.values()) == {"README.md", "tokenizer/vocab.json", "tokenizer/merges.txt"}
    edited = {name for name in before if before[name] != after[plain[name]]} - shards
    encoder, configs = (
        "text_encoder/model.fp16.safetensors",
        {name for name in edited if name.endswith(("config.json", "model_index.json"))},
    )
    assert edited - configs == {encoder, *(name for name in before if name.endswith(".index.fp16.json"))}
    assert configs <= {"model_index.json", *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder"))}
    for shard in shards:
        old, new = load_file(base / shard), load_file(written / plain[shard])
        assert {n: t.dtype for n, t in old.items()} == {n: t.dtype for n, t in new.items()}
    edited = StableDiffusionPipeline.from_pretrained(written, safety_checker=None)
    refined = load_file(tmp_path / "run/refined.safetensors")
    assert all(torch.equal(edited.unet.state_dict()[name].half(), weight) for name, weight in refined.items())
    assert "variant" not in (written / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ("model.ckpt", [], "Pickles (.ckpt) are never loaded"),
        ("lora.safetensors", [], "holds no UNet in the original layout"),
        ("broken.safetensors", [], "cannot be loaded"),
        ("toy", ["--model.revision", "v1"], "model.revision=v1 is for hub ids"),
        ("toy", ["--model.variant", "fp16"], "model.variant=fp16"),
        ("toy", ["--model.layout", "x"], "model.layout=x is for single checkpoints"),
        ("lora.safetensors", ["--model.variant", "fp16"], "model.variant=fp16 is for folders"),
    ],
)
def test_models_that_cannot_be_are_refused(
    tmp_path: Path, toy_pipeline: Path, given: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    save_file({"lora_unet_a.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    pretrained = toy_pipeline if given == "toy" else tmp_path / given
    assert message in exit_message([*config(tmp_path, pretrained, "run"), *more], capsys)
    assert not (tmp_path / "run").exists()


def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as raised:
        load_pipeline("nobody/nothing")
    assert str(raised.value) == (
        "model.pretrained=nobody/nothing is not on this disk and the hub is not reachable: connect, or give a folder "
        "or .safetensors file."
    )
