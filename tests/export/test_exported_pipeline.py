"""An exported pipeline passes on all of its base that was not edited, and its card says what was."""

import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.exports import export, same_encoder, sums
from support.finished import changes
from support.tolerances import (
    FLOAT16_WEIGHTS,
    close,
)

from mace_pl.files.owned import RECORD


def same_settings(base: Path, written: Path) -> bool:
    """Whether a configuration is the base's, but for the dtype to load it in and the place it was loaded from."""
    own, copy = (
        re.sub(
            r'"(torch_)?dtype": "\w+"',
            "",
            json.dumps(json.loads(file.read_text()) | {"_name_or_path": ""}, sort_keys=True),
        )
        for file in (base, written)
    )
    return own == copy


def test_a_pipeline_passes_on_all_that_was_not_edited(half_run: Path, half_base: Path, tmp_path: Path) -> None:
    written = export(half_run, tmp_path / "pipeline", "--format", "pipeline")
    before, after = sums(half_base), sums(written)
    assert set(after) - set(before) == {"tokenizer/vocab.json", "tokenizer/merges.txt", RECORD}
    assert set(before) <= set(after)
    edited = {name for name in before if before[name] != after[name]}
    weights = {name for name in edited if name.startswith("unet/") and name.endswith(".safetensors")}
    assert weights and same_encoder(half_base, written)
    for name in edited - weights - {"README.md", "text_encoder/model.safetensors"}:
        assert same_settings(half_base / name, written / name)
    assert {"safety_checker/model.safetensors", "LICENSE.txt", "vae/diffusion_pytorch_model.safetensors"} <= set(after)
    shards = sorted((half_base / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        old, new = load_file(shard), load_file(written / "unet" / shard.name)
        assert {n: t.dtype for n, t in old.items()} == {n: t.dtype for n, t in new.items()}
        assert all(torch.equal(old[n], new[n]) for n in old if ".attn2.to_k." not in n and ".attn2.to_v." not in n)
    unet = UNet2DConditionModel.from_pretrained(written, subfolder="unet")
    for name, (W, delta) in changes(half_run, half_base).items():
        expected = torch.from_numpy(W + delta).half().float()
        close(unet.get_submodule(name).weight.data.float(), expected, FLOAT16_WEIGHTS)


def test_a_part_that_the_base_lists_and_lacks_is_left_out(half_run: Path, half_base: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cached"  # a hub cache that was filled without the safety checker
    shutil.copytree(half_base, cached)
    shutil.rmtree(cached / "safety_checker")
    run = tmp_path / "run"
    shutil.copytree(half_run, run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(half_base), str(cached)))
    written = export(run, tmp_path / "pipeline", "--format", "pipeline")
    pipeline = StableDiffusionPipeline.from_pretrained(written)
    assert pipeline.safety_checker is None


def test_the_card_names_base_targets_settings_scores_and_licence(
    half_run: Path, half_base: Path, tmp_path: Path
) -> None:
    metrics = {
        "accuracy": {"before": {"ship": 0.9, "cat": 0.8}, "after": {"ship": 0.1, "cat": 0.75}},
        "mean_accuracy": {"before": {"targets": 0.9, "kept": 0.8}, "after": {"targets": 0.1, "kept": 0.75}},
        "seeds": 4,
    }
    (half_run / "report").mkdir()
    (half_run / "report/metrics.json").write_text(json.dumps(metrics))
    card = ModelCard.load(export(half_run, tmp_path / "pipeline", "--format", "pipeline") / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.base_model == "somebody/sd"
    assert card.data.license == "creativeml-openrail-m"
    assert {"text-to-image", "stable-diffusion", "concept-erasure"} <= set(card.data.tags)
    for line in ("| ship | ground | object | 1 |", "| `seed_everything` | 7 |", "| ship | 90% | 10% |"):
        assert line in card.text
    assert "DiffusionPipeline.from_pretrained" in card.text
    assert str(half_base.parent) not in card.content


def test_a_base_without_card_has_an_unknown_licence(run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    card = ModelCard.load(export(run, tmp_path / "pipeline", "--format", "pipeline") / "README.md")
    assert card.data.license == "unknown"
    assert card.data.base_model is None  # a folder of this machine is no model of the hub
    assert "unknown: see the base model" in card.text and "Not measured." in card.text
