"""Models that are not what they seem are refused while they are loaded, by one line, or read as what they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from support.families import family
from support.finished import finished_run
from support.runs import config, exit_message
from support.tolerances import FLOAT32_PASS, close
from transformers import CLIPTextConfig, CLIPTextModel

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.errors import UserError
from mace_pl.export.metadata import modelspec
from mace_pl.export.single_file import single_file
from mace_pl.models.base_model import BaseModel
from mace_pl.models.pipeline import load_pipeline, load_with_source, vae_latents
from mace_pl.models.source import Source

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(toy_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_pipeline, tmp_path / "model"))


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(place: Path, *more: str) -> str:
    """The message of ``fit``, which is one line and leaves nothing."""
    with pytest.raises(SystemExit) as stop:
        erase_main([*config(place.parent, place, "run"), *more])
    message = str(stop.value.code)
    assert "error: " in message and "\n" not in message
    assert not (place.parent / "run").exists() and not (place.parent / "pictures").exists()
    return message


@pytest.mark.parametrize("name", ["StableDiffusionInpaintPipeline", "StableDiffusionPipeline"])
def test_a_unet_of_nine_channels_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / UNET)
    wide = torch.nn.functional.pad(tensors["conv_in.weight"], (0, 0, 0, 0, 0, 5))
    save_file(tensors | {"conv_in.weight": wide}, folder / UNET, metadata={"format": "pt"})
    edit_json(folder / "unet/config.json", in_channels=9)
    edit_json(folder / "model_index.json", _class_name=name)
    message = refused(folder)
    assert f"model.pretrained={folder}" in message and "takes 9 channels" in message


def test_weights_under_the_name_of_img2img_are_edited_and_generated_from_text(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    assert type(load_pipeline(str(folder))) is StableDiffusionPipeline
    export_run(str(finished_run(tmp_path / "run", folder)), "pipeline")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "run/pipeline")) is StableDiffusionPipeline


@pytest.mark.parametrize(
    "name",
    ["FluxPipeline", "StableDiffusion3Pipeline", "OnnxStableDiffusionPipeline", "StableDiffusionUpscalePipeline"],
)
def test_other_families_are_refused_by_their_class(folder: Path, name: str) -> None:
    edit_json(folder / "model_index.json", _class_name=name)
    assert f"model.pretrained={folder}: its model_index.json names {name}" in refused(folder)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("EDMEulerScheduler", {}, "EDMEulerScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "flow"),
    ],
)
def test_other_kinds_of_noise_are_refused(folder: Path, name: str, settings: dict[str, object], said: str) -> None:
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name, **settings}))
    message = refused(folder)
    assert f"model.pretrained={folder}" in message and said in message


def test_a_tiny_autoencoder_encodes(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    sides = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderTiny(**sides, **blocks, latent_channels=4).save_pretrained(folder / "vae")
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    vae = load_pipeline(str(folder)).vae
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    close(vae_latents(vae, pixels), vae.encoder(pixels), FLOAT32_PASS)  # its scaling factor is 1


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_parts_that_were_saved_with_an_adapter_are_refused(toy_pipeline: Path, tmp_path: Path, part: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    names = ["to_k"] if part == "unet" else ["q_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names), getattr(pipeline, part))
    if part == "unet":
        pipeline.save_pretrained(tmp_path / "model")
    else:  # transformers writes the adapter alone: what other programs leave has the names of layers with adapters
        shutil.copytree(toy_pipeline, tmp_path / "model")
        save_file(
            {k.removeprefix("text_model."): v.contiguous() for k, v in pipeline.text_encoder.state_dict().items()},
            tmp_path / "model/text_encoder/model.safetensors",
            metadata={"format": "pt"},
        )
    message = refused(tmp_path / "model")
    assert f"the files of its {part} were saved with an adapter attached" in message and "fuse" in message


def test_files_that_lack_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_out.weight"]
    save_file(tensors, folder / UNET, metadata={"format": "pt"})
    assert "the files of its unet are not its weights: they lack conv_out.weight" in refused(folder)


def test_keys_and_values_that_are_not_finite_are_refused_by_their_layer(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    key = next(name for name in tensors if name.endswith("attn2.to_v.weight"))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, folder / UNET, metadata={"format": "pt"})
    said = f"the weights of its layer {key.removesuffix('.weight')} are not finite (1 such keys and values)"
    assert said in refused(folder)


def test_parts_of_different_models_are_refused(folder: Path) -> None:
    settings = json.loads((folder / "text_encoder/config.json").read_text())
    CLIPTextModel(CLIPTextConfig(**settings | {"hidden_size": 48})).save_pretrained(folder / "text_encoder")
    assert "takes text of width 32, its text encoders give 48" in refused(folder)


@pytest.mark.parametrize("left", [["tokenizer_config.json"], []])
def test_a_tokenizer_without_words_is_refused(folder: Path, left: list[str]) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name not in left:
            file.unlink()
    with pytest.raises(UserError, match=r"model\.pretrained=.*: its tokenizer has no vocabulary"):
        load_pipeline(str(folder))


def test_a_unet_without_a_size_of_images_is_refused(folder: Path) -> None:
    edit_json(folder / "unet/config.json", sample_size=None)
    with pytest.raises(UserError, match=r"its unet/config\.json has no sample_size"):
        load_pipeline(str(folder))


def test_the_one_variant_of_a_folder_is_read(toy_pipeline: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    loaded, source = load_with_source(str(tmp_path / "half"))
    assert source == Source(tmp_path / "half", variant="fp16")
    torch.testing.assert_close(loaded.unet.state_dict(), pipeline.unet.float().state_dict(), rtol=0, atol=0)
    pipeline.unet.save_pretrained(tmp_path / "half/unet", variant="other")
    assert "fp16, other only. Name one in model.variant" in refused(tmp_path / "half")
    assert load_with_source(str(tmp_path / "half"), variant="fp16")[1].variant == "fp16"


def test_weights_of_another_unet_beside_it_are_not_passed_on(folder: Path, tmp_path: Path) -> None:
    """As of Stable Diffusion 1.4: the weights without moving averages, and half precision of those that are read."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.half().save_pretrained(folder / "unet", variant="fp16")
    for parameter in unet.float().parameters():
        parameter.data.mul_(1.01)
    unet.save_pretrained(folder / "unet", variant="non_ema")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    run = finished_run(tmp_path / "run", folder)
    export_run(str(run), "pipeline")
    export_run(str(run), "refined")
    written = {f.name for f in (run / "pipeline/unet").iterdir()}
    weights = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    assert written == {"config.json", *weights}
    edited = load_file(run / "refined.safetensors")
    for name in weights:
        found = load_file(run / "pipeline/unet" / name)
        assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in edited.items())


@pytest.fixture
def single(toy_pipeline: Path, tmp_path: Path) -> Any:
    """Tensors of a checkpoint of SD 1.x, and its layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline = family("sd1", toy_pipeline)
    pipeline.save_pretrained(tmp_path / "layout")
    for file in (tmp_path / "layout").rglob("*.safetensors"):
        file.unlink()
    return {
        name: tensor.contiguous() for name, tensor in single_file(pipeline, Source(), None).items()
    }, tmp_path / "layout"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("first_stage_model.", "holds no vae"),
        ("cond_stage_model.", "holds no text_encoder"),
        ("model.diffusion_model.", "holds no UNet"),
        ("model.diffusion_model.out.2.weight", "cannot be loaded"),
    ],
)
def test_a_checkpoint_without_a_part_is_refused(single: Any, tmp_path: Path, start: str, said: str) -> None:
    tensors, layout = single
    file = tmp_path / "part.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.startswith(start)}, file)
    message = refused(file, "--model.layout", str(layout))
    assert f"model.pretrained={file}" in message and said in message


def test_a_checkpoint_for_inpainting_is_refused(single: Any, tmp_path: Path) -> None:
    tensors, layout = single
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wide = torch.nn.functional.pad(tensors[key], (0, 0, 0, 0, 0, 5))
    save_file(tensors | {key: wide}, tmp_path / "inpaint.safetensors")
    assert "takes 9 channels" in refused(tmp_path / "inpaint.safetensors", "--model.layout", str(layout))


@pytest.mark.parametrize(
    ("more", "header"),
    [({"v_pred": torch.empty(0)}, {}), ({}, {"modelspec.prediction_type": "v"}), ({"ztsnr": torch.empty(0)}, {})],
)
def test_marks_that_the_layout_contradicts_are_refused(
    single: Any, tmp_path: Path, more: dict[str, torch.Tensor], header: dict[str, str]
) -> None:
    tensors, layout = single
    file = tmp_path / "marked.safetensors"
    save_file(tensors | more, file, metadata={"format": "pt", **header})
    message = refused(file, "--model.layout", str(layout))
    assert f"model.layout={layout}" in message and "prediction_type=epsilon" in message
    right = {"prediction_type": "v_prediction"} if "ztsnr" not in more else {"rescale_betas_zero_snr": True}
    edit_json(layout / "scheduler/scheduler_config.json", **right)
    assert load_pipeline(str(file), layout=str(layout)).scheduler.config.get(next(iter(right)))


def test_a_layout_that_is_given_wins_over_a_text_that_says_epsilon(single: Any, tmp_path: Path) -> None:
    """Tools write that text by default."""
    tensors, layout = single
    edit_json(layout / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    file = tmp_path / "marked.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "modelspec.prediction_type": "epsilon"})
    with pytest.warns(UserWarning, match=r"marked as epsilon .* has v_prediction, which is used"):
        pipeline = load_pipeline(str(file), layout=str(layout))
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    said = modelspec(pipeline, "title", "description", None, lora=False)["modelspec.prediction_type"]
    assert said == "v"  # what is exported says what it is


def test_a_path_for_the_layout_is_not_looked_up_on_the_hub(single: Any, tmp_path: Path) -> None:
    save_file(single[0], tmp_path / "file.safetensors")
    message = refused(tmp_path / "file.safetensors", "--model.layout", str(tmp_path / "nowhere"))
    assert f"model.layout={tmp_path / 'nowhere'} does not exist" in message


@pytest.mark.parametrize("command", [["export", "--format", "refined"], ["fuse"]])
def test_a_base_that_moved_is_named_and_checked(
    folder: Path,
    toy_pipeline: Path,
    tmp_path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models").mkdir()
    folder.rename("models/m")
    few = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}
    concepts = [{"target": "ship", "anchor": "ground"}]
    erase_main([*config(tmp_path, Path("models/m"), "run", concepts, **few), "--save_pipeline", "false"])
    assert BaseModel.of({"pretrained": "models/m", "layout": "a/b"}).kinds == {"pretrained": "path", "layout": "hub"}
    call = [command[0], "--run", str(tmp_path / "run"), *command[1:]]
    output = ["--output", "x.safetensors"] if command[0] == "export" else ["--output_dir", "fused"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where models/m has the form of a hub id
    message = exit_message([*call, *output], capsys)
    assert "model.pretrained=models/m does not exist" in message and "--pretrained" in message
    unet = UNet2DConditionModel.from_pretrained(toy_pipeline / "unet")
    unet.conv_out.bias.data.add_(1)
    other = shutil.copytree(toy_pipeline, tmp_path / "other")
    unet.save_pretrained(other / "unet")
    message = exit_message([*call, *output, "--pretrained", str(other)], capsys)
    assert "the unet of" in message and "other weights" in message and "--pretrained" in message
    assert not list(Path().iterdir())
    erase_main([*call, *output, "--pretrained", "../models/m"])
    assert Path(output[1]).exists()
