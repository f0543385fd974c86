"""Every format of the edit is the same edit, in the dtype of its base; what cannot be exported is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from support.exports import NAMINGS, base, export, same_encoder, sums
from support.finished import changes
from support.runs import checksums, config, exit_message, naming
from support.tolerances import (
    FLOAT32_EDIT,
    close,
)

from mace_pl.cli import erase_main
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of


def test_refined_and_edit_are_the_same_edit(run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    refined = load_file(export(run, tmp_path / "kv.safetensors", "--format", "refined"))
    copy = Edit.load(export(run, tmp_path / "copy.safetensors", "--format", "edit"))
    again = copy.weights(backbone_of(base(toy_pipeline)).key_values())
    for name, (W, delta) in changes(run, toy_pipeline).items():
        expected = torch.from_numpy(W + delta).float()
        close(refined[f"{name}.weight"], expected, FLOAT32_EDIT)
        close(again[name], expected, FLOAT32_EDIT)


@pytest.mark.parametrize("format", ["pipeline", "refined", *NAMINGS, "single_file", "unet"])
def test_the_bases_dtype_is_kept_unless_another_is_asked_for(
    half_run: Path, half_base: Path, tmp_path: Path, format: str
) -> None:
    dtypes = {}
    for name, more in (("kept", []), ("other", ["--dtype", "bfloat16"])):
        output = tmp_path / (f"{name}.safetensors" if format in ("refined", "single_file", "unet") else name)
        export(half_run, output, "--format", format, *(["--rank", "4"] if format in NAMINGS else []), *more)
        folder = output / "unet" if format == "pipeline" else output
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [output]
        tensors = [item for file in files for item in load_file(file).items()]
        dtypes[name] = {tensor.dtype for key, tensor in tensors if not key.endswith(".alpha")}  # exact in float32 alone
        if format == "pipeline":
            assert same_encoder(half_base, output)
    assert dtypes == {"kept": {torch.float16}, "other": {torch.bfloat16}}


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = {"text_encoder/config.json", "text_encoder/model.safetensors"}  # edited for older programs


def test_fit_writes_the_formats_it_is_asked_for(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "ground"}], steps_per_concept=1)
    erase_main([*args, "--export", "[pipeline, lora, lora_peft, single_file, unet]"])
    run = tmp_path / "run"
    lora = ("lora/run.safetensors", "lora/README.md", "lora_peft/adapter_config.json", "lora_peft/README.md")
    for name in ("pipeline/README.md", *lora, "model.safetensors", "refined.safetensors", "unet.safetensors"):
        assert (run / name).is_file()
    before, after = sums(toy_pipeline), sums(run / "pipeline")
    assert all(after[name] == before[name] for name in set(before) - TEXT_ENCODER if not name.startswith("unet/"))
    again = export(run, tmp_path / "again", "--format", "pipeline")
    assert (again / "README.md").read_text() == (run / "pipeline/README.md").read_text()
    first, other = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (run / "pipeline", again))
    for name in first:
        close(first[name], other[name], FLOAT32_EDIT)
    single = StableDiffusionPipeline.from_single_file(
        str(run / "model.safetensors"), config=str(toy_pipeline), local_files_only=True
    )
    assert all(torch.equal(single.unet.state_dict()[name], first[name]) for name in first)
    erase_main([*args, "--export", "[pipeline]", "--save_pipeline", "false", "--overwrite", "true"])
    assert {p.name for p in run.iterdir()} >= {"edit.safetensors", "refined.safetensors"}
    assert not (run / "pipeline").exists() and not (run / "lora").exists()
    erase_main(["fuse", "--run", str(run), "--output_dir", str(tmp_path / "fused"), "--weights", "ship=0.5"])
    assert "| ship | ground | object | 0.5 |" in (tmp_path / "fused/pipeline/README.md").read_text()
    again = export(tmp_path / "fused", tmp_path / "fused-lora", "--format", "lora", "--rank", "1")
    assert (again / "fused.safetensors").is_file()
    assert not naming(tmp_path, tmp_path.parent, "config.yaml", "run.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "ckpt"], "format=ckpt is no format. Choose from pipeline"),
        (["--format", "lora", "--rank", "0"], "rank=0 must be at least 1"),
        (["--format", "lora", "--rank", "most"], "rank=most must be a whole number"),
        (["--format", "lora", "--rank", "33"], "rank=33 must be between 1 and 32"),
        (["--format", "lora", "--rank", "4", "--max_error", "0.1"], "Pass --rank auto"),
        (["--format", "lora", "--max_error", "2"], "max_error=2.0 must be between 0 and 1"),
        (["--format", "refined", "--rank", "4"], "settings of lora, lora_diffusers, lora_peft, not of refined"),
        (["--format", "refined", "--dtype", "int8"], "dtype=int8 must be one of float32"),
        (["--format", "edit", "--dtype", "float16"], "none for edit"),
        (["--format", "edit"], "output: {run}/edit.safetensors exists. Choose another --output"),
        (["--format", "refined", "--output", "{run}/kv"], "must be a file name that ends in .safetensors"),
        (["--format", "lora", "--output", "{run}/a.safetensors"], "must be a folder"),
        (["--format", "pipeline", "--output", "{run}", "--overwrite", "true"], "would replace the run"),
        (["--format", "pipeline", "--output", "{base}", "--overwrite", "true"], "which this project did not write"),
        (["--format", "refined", "--output", "{run}/edit.safetensors", "--overwrite", "true"], "lies in the run"),
        (["--format", "pipeline", "--output", "{run}/report"], "lies in the run"),
        (["--format", "refined", "--output", "{base}/kv.safetensors"], "lies in the base model"),
        (["--format", "unet", "--output", f"{{base}}/{WEIGHTS}", "--overwrite", "true"], "was not written by this"),
        (["--format", "pipeline", "--run", "{base}"], "is no output folder of fit"),
    ],
)
def test_bad_input_is_refused(
    run: Path, toy_pipeline: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checksums(run) | checksums(toy_pipeline)
    given = ["--run", str(run), *[word.format(run=run, base=toy_pipeline) for word in args]]
    assert message.format(run=run) in exit_message(["export", *given], capsys)
    assert checksums(run) | checksums(toy_pipeline) == before


def test_another_base_model_is_refused(
    run: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = shutil.copytree(toy_pipeline, tmp_path / "other")
    changed = json.loads((other / "unet/config.json").read_text()) | {"block_out_channels": [32, 32]}
    UNet2DConditionModel.from_config(changed).save_pretrained(other / "unet")
    text = (run / "config.yaml").read_text().replace(str(toy_pipeline), str(other))
    (tmp_path / "run/config.yaml").write_text(text)
    message = exit_message(["export", "--run", str(tmp_path / "run"), "--format", "refined"], capsys)
    assert "are not those that were edited" in message
    assert not (tmp_path / "run/refined.safetensors").exists()


def test_fit_refuses_an_unknown_format(tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*config(tmp_path, toy_pipeline, "run"), "--export", "[onnx]"]
    assert "export=onnx is no format" in exit_message(args, capsys)
    assert not (tmp_path / "pictures").exists()
