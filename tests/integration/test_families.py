"""Each family of models from end to end: fit, export, reload by unmodified diffusers, sample."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from support.families import FAMILIES, family
from support.finished import images, noise_of
from support.runs import config, exit_message
from support.tolerances import FLOAT32_PASS, MOVED, above, close, same_images
from transformers import CLIPTokenizer

from mace_pl.cli import erase_main
from mace_pl.models.backbone import backbone_of
from mace_pl.models.cross_attention import cross_attentions
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.text_encoding import encode_both
from mace_pl.models.unet_inputs import unet_conditions


def saved(name: str, toy: Path, folder: Path) -> Path:
    family(name, toy).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fitted_exported_loaded_and_sampled(name: str, tmp_path: Path, toy_pipeline: Path) -> None:
    base = saved(name, toy_pipeline, tmp_path / "base")
    concepts = [{"target": "ship", "anchor": "the sky"}, {"target": "painter", "anchor": "art", "kind": "style"}]
    formats = "[pipeline, lora]" if name == "lcm" else "[pipeline, lora, single_file]"
    args = config(tmp_path, base, "run", concepts, images_per_concept=1, steps_per_concept=2, image_steps=1)
    erase_main([*args, "--export", formats])
    refined = load_file(tmp_path / "run/refined.safetensors")
    before, after = (DiffusionPipeline.from_pretrained(f) for f in (base, tmp_path / "run/pipeline"))
    assert type(before) is type(after)
    original = backbone_of(before).key_values()
    assert len(original) == 2 * len(cross_attentions(before.unet))
    assert len(refined) == len(original) + (name == "sdxl")  # and the layer of pooled text
    for layer, weight in backbone_of(after).key_values().items():
        torch.testing.assert_close(refined[f"{layer}.weight"], weight, rtol=0, atol=0)
        above((weight - original[layer]).abs().max(), MOVED)
    above((noise_of(before.unet) - noise_of(after.unet)).abs().max(), MOVED)
    if name != "lcm":
        single = type(before).from_single_file(
            str(tmp_path / "run/model.safetensors"), config=str(base), local_files_only=True
        )
        same_images(images(single), images(after))
    lora = load_file(tmp_path / "run/stages/lora/ship.safetensors")
    moved = {key for key, value in lora.items() if key.endswith(".B") and value.abs().max() > 0}
    assert len(moved) == len(original) - 1  # the values of the last layer reach no loss


@pytest.mark.parametrize("name", ["sd1", "sdxl", "lcm"])
def test_training_tells_the_unet_what_the_pipeline_tells_it(name: str, tmp_path: Path, toy_pipeline: Path) -> None:
    pipeline = load_pipeline(str(saved(name, toy_pipeline, tmp_path / "base")))
    seen: dict[str, Any] = {}

    def record(module: Any, args: Any, named: dict[str, Any]) -> None:
        seen.update(named)

    pipeline.unet.register_forward_pre_hook(record, with_kwargs=True)
    pipeline("a photo of a ship", num_inference_steps=1, guidance_scale=3.0)
    text, pooled = encode_both(pipeline, ["a photo of a ship"])
    own = unet_conditions(pipeline, pooled, 1, 3.0)
    wanted = {"sd1": set(), "sdxl": {"added_cond_kwargs"}, "lcm": {"timestep_cond"}}[name]
    assert set(own) == wanted
    close(seen["encoder_hidden_states"][-1:], text, FLOAT32_PASS)
    for key, value in own.get("added_cond_kwargs", {}).items():  # the last row is the conditional one
        close(value, seen["added_cond_kwargs"][key][-1:], FLOAT32_PASS)
    if name == "lcm":
        close(own["timestep_cond"], seen["timestep_cond"], FLOAT32_PASS)


def test_tokenizers_that_disagree_are_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = saved("sdxl", toy_pipeline, tmp_path / "base")
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    other = pipeline.tokenizer_2
    vocab = other.get_vocab()
    spelt = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, pad_token="!")
    spelt.save_pretrained(base / "tokenizer_2")
    assert "split 'ship' in" in exit_message(config(tmp_path, base, "run"), capsys)
    assert not (tmp_path / "run").exists()


def test_a_unet_that_wants_images_is_refused(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = saved("sd1", toy_pipeline, tmp_path / "base")
    settings = dict(UNet2DConditionModel.load_config(base / "unet"))
    settings |= {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}
    UNet2DConditionModel.from_config(settings).save_pretrained(base / "unet")
    assert "addition_embed_type=text" in exit_message(config(tmp_path, base, "run"), capsys)
