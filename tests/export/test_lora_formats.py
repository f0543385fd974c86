"""The edit as one LoRA, in the names of three programs: the whole of it at full rank, its truncation below."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from support.exports import NAMINGS, base, export
from support.finished import changes, images, noise_of, truncated
from support.tolerances import (
    EDITED_PASS,
    FLOAT64_SOLVES,
    OTHER_IMAGE,
    TRUNCATED,
    above,
    close,
    same_images,
)

from mace_pl.models.backbone import backbone_of


def with_lora(folder: Path, naming: str, lora: Path) -> StableDiffusionPipeline:
    pipeline = base(folder)
    if naming == "lora_peft":
        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, lora / naming).merge_and_unload()
    else:
        pipeline.load_lora_weights(lora / naming)  # the folder holds one file, which diffusers finds
    return pipeline


@pytest.fixture(scope="module")
def full_rank(run: Path) -> Path:
    for form in NAMINGS:
        export(run, run.parent / "full" / form, "--format", form, "--rank", "32")
    return run.parent / "full"


@pytest.fixture(scope="module")
def rank_two(run: Path) -> Path:
    for form in NAMINGS:
        export(run, run.parent / "two" / form, "--format", form, "--rank", "2", "--dtype", "float32")
    return run.parent / "two"


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_of_full_rank_generates_the_images_of_the_edit(
    run: Path, full_rank: Path, toy_pipeline: Path, naming: str
) -> None:
    whole = base(toy_pipeline)
    before = images(whole)
    changed = {n: torch.from_numpy(W + delta) for n, (W, delta) in changes(run, toy_pipeline).items()}
    backbone_of(whole).set_key_values(changed)
    expected = images(whole)
    above((expected - before).abs().max(), OTHER_IMAGE)
    same_images(images(with_lora(toy_pipeline, naming, full_rank)), expected)


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_of_low_rank_is_the_truncated_edit(run: Path, rank_two: Path, toy_pipeline: Path, naming: str) -> None:
    explicit = base(toy_pipeline)
    weights, _ = truncated(run, toy_pipeline, 2)
    backbone_of(explicit).set_key_values(weights)
    found = with_lora(toy_pipeline, naming, rank_two)
    close(noise_of(found.unet), noise_of(explicit.unet), EDITED_PASS)
    same_images(images(found), images(explicit))


def test_kohya_names_are_those_of_sd_scripts(rank_two: Path) -> None:
    tensors = load_file(rank_two / "lora" / "run.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert {n for n in tensors if n.startswith(f"{layer}.")} == {
        f"{layer}.lora_down.weight",
        f"{layer}.lora_up.weight",
        f"{layer}.alpha",
    }
    assert tensors[f"{layer}.alpha"].item() == 2
    assert tensors[f"{layer}.lora_down.weight"].shape == (2, 32)


def stored(lora: Path) -> dict[str, object]:
    with safe_open(str(lora / "run.safetensors"), framework="pt") as file:
        return json.loads(file.metadata()["mace_pl"])


def test_truncation_errors_are_stored_and_shown(
    run: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = export(run, tmp_path / "lora", "--format", "lora", "--rank", "2")
    shown = capsys.readouterr().out
    _, errors = truncated(run, toy_pipeline, 2)
    close(stored(lora)["relative_errors"], errors, FLOAT64_SOLVES)
    above(min(errors.values()), TRUNCATED)
    assert "rank 2" in shown and "down_blocks.0.attentions.0.transformer_blocks.0 " in shown
    assert "off the edit" in shown
    assert all(f"{error:.2%}" in shown for error in errors.values())


def test_auto_takes_the_smallest_rank_that_keeps_the_error(run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    lora = export(run, tmp_path / "lora", "--format", "lora", "--rank", "auto", "--max_error", "0.1")
    rank = stored(lora)["rank"]
    assert isinstance(rank, int) and rank > 1
    assert max(truncated(run, toy_pipeline, rank)[1].values()) <= 0.1  # what was asked for, in float64 on both sides
    assert max(truncated(run, toy_pipeline, rank - 1)[1].values()) > 0.1  # or one less would do
