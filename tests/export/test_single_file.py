"""Checkpoints in the original layout come back through diffusers' own single-file loader, for each family of models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file
from support.families import family, four_blocks, xl_blocks
from support.finished import changes, finished_run, images, noise_of, truncated
from support.runs import config, exit_message
from support.tolerances import EDITED_PASS, FLOAT32_EDIT, FLOAT32_PASS, MOVED, above, close, same_images

from mace_pl.cli import erase_main
from mace_pl.export.lora import to_kohya
from mace_pl.models.backbone import backbone_of
from mace_pl.models.cross_attention import key_value_names


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def made(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family, base folder and run."""
    folder = tmp_path_factory.mktemp(request.param)
    family(request.param, toy_pipeline).save_pretrained(folder / "base")
    return request.param, folder / "base", finished_run(folder / "run", folder / "base")


def pipeline_class(name: str) -> Any:
    return StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline


def export(run: Path, output: Path, *args: str) -> Path:
    erase_main(["export", "--run", str(run), "--output", str(output), *args])
    return output


def test_the_single_file_is_the_edited_pipeline(made: Any, tmp_path: Path) -> None:
    name, base, run = made
    file = export(run, tmp_path / "model.safetensors", "--format", "single_file")
    loaded = pipeline_class(name).from_single_file(str(file), config=str(base), local_files_only=True)
    expected = pipeline_class(name).from_pretrained(base)
    changed = {n: torch.from_numpy(W + delta) for n, (W, delta) in changes(run, base).items()}
    backbone_of(expected).set_key_values(changed)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        own = getattr(expected, part, None)
        if own is None:
            continue
        found = getattr(loaded, part).state_dict()
        assert set(found) == set(own.state_dict())
        for key, value in own.state_dict().items():
            close(found[key], value, FLOAT32_EDIT)
    if name != "sdxl":
        same_images(images(loaded), images(expected))


def test_the_layout_is_recognised(made: Any, tmp_path: Path) -> None:
    name, _, run = made
    file = load_file(export(run, tmp_path / "model.safetensors", "--format", "single_file", "--dtype", "float16"))
    assert {tensor.dtype for tensor in file.values()} == {torch.float16}
    assert file["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4  # a convolution in the original
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
    clip = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert f"{prefix[name]}token_embedding.weight" in file if name in prefix else clip in file
    if name == "sd1":
        assert infer_diffusers_model_type(file) == "v1"
        assert "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight" in file


def original_modules(attended: list[bool], layers: int = 2) -> dict[str, str]:
    """Which module stands at which place of the original UNet, by the loops that build it; one flag per level."""
    inputs, outputs = [["conv"]], []
    for level, attention in enumerate(attended):
        inputs += [["res", "attention"] if attention else ["res"] for _ in range(layers)]
        inputs += [["down"]] if level + 1 < len(attended) else []
    for level, attention in reversed(list(enumerate(attended))):
        rows = [["res", "attention"] if attention else ["res"] for _ in range(layers + 1)]
        rows[-1] += ["up"] if level > 0 else []
        outputs += rows
    middle = [["res"], ["attention"], ["res"]]
    found = {f"input_blocks.{i}.{j}": kind for i, row in enumerate(inputs) for j, kind in enumerate(row)}
    found |= {f"output_blocks.{i}.{j}": kind for i, row in enumerate(outputs) for j, kind in enumerate(row)}
    return found | {f"middle_block.{i}": row[0] for i, row in enumerate(middle)}


@pytest.mark.parametrize(
    ("made", "attended"),
    [("sd1", [True, True, True, False]), ("sdxl", [False, True, True])],
    indirect=["made"],
)
def test_modules_stand_where_the_original_has_them(made: Any, attended: list[bool], tmp_path: Path) -> None:
    _, _, run = made
    file = load_file(export(run, tmp_path / "model.safetensors", "--format", "single_file"))
    kinds = {"in_layers": "res", "transformer_blocks": "attention", "op": "down", "conv": "up", "weight": "conv"}
    found = {}
    for name in (n.removeprefix("model.diffusion_model.") for n in file if ".diffusion_model." in n):
        words = name.split(".")
        depth = {"input_blocks": 3, "output_blocks": 3, "middle_block": 2}.get(words[0])
        if depth is not None and words[depth] in kinds:
            found[".".join(words[:depth])] = kinds[words[depth]]
    assert found == original_modules(attended)


@pytest.mark.parametrize("made", ["sdxl"], indirect=True)
def test_kohya_names_of_sdxl_are_the_original_ones_and_load(made: Any, tmp_path: Path) -> None:
    _, base, run = made
    lora = export(run, tmp_path / "lora", "--format", "lora", "--rank", "3")
    layer = "lora_unet_input_blocks_5_1_transformer_blocks_0_attn2_to_k"
    assert f"{layer}.lora_down.weight" in load_file(lora / "run.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    before = noise_of(pipeline.unet)
    pipeline.load_lora_weights(lora, weight_name="run.safetensors")
    found = noise_of(pipeline.unet)
    pipeline.unload_lora_weights()
    close(noise_of(pipeline.unet), before, FLOAT32_PASS)
    backbone_of(pipeline).set_key_values(truncated(run, base, 3)[0])
    close(found, noise_of(pipeline.unet), EDITED_PASS)
    above((found - before).abs().max(), MOVED)


@pytest.mark.parametrize("distilled", [None, 8])
def test_a_distilled_sdxl_keeps_the_block_names_of_diffusers(distilled: int | None) -> None:
    unet = xl_blocks(40, 80, time_cond_proj_dim=distilled)
    factors = {name: (torch.zeros(1, 80), torch.zeros(8, 1)) for name in key_value_names(unet)}
    names = to_kohya(factors, unet, sdxl=True)
    assert len(names) == 3 * len(factors)
    assert any(name.startswith("lora_unet_down_blocks_1_attentions_0_") for name in names) == (distilled is not None)


def test_a_unet_without_a_place_in_the_layout_is_refused_before_training(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    pipeline.register_modules(unet=four_blocks(time_cond_proj_dim=8))  # as distilled models (LCM) have
    pipeline.save_pretrained(tmp_path / "base")
    message = exit_message([*config(tmp_path, tmp_path / "base", "run"), "--export", "[single_file]"], capsys)
    assert "single_file: the unet cannot be written" in message and "time_embedding.cond_proj.weight" in message
    assert "Export pipeline, refined or lora instead" in message
    assert not (tmp_path / "run").exists()
    run = finished_run(tmp_path / "finished", tmp_path / "base")
    assert "cond_proj" in exit_message(["export", "--run", str(run), "--format", "single_file"], capsys)
    assert not (run / "model.safetensors").exists()
