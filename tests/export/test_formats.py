"""What is exported loads in unmodified diffusers and PEFT and is the edit; what cannot be exported is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from support.finished import changes, finished_run, images, noise_of, truncated
from support.runs import checksums, config, exit_message, naming
from support.tolerances import (
    EDITED_PASS,
    FLOAT16_WEIGHTS,
    FLOAT32_EDIT,
    FLOAT64_SOLVES,
    OTHER_IMAGE,
    TRUNCATED,
    above,
    close,
    same_images,
)
from transformers import CLIPConfig

from mace_pl.cli import erase_main
from mace_pl.files.owned import RECORD
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("export") / "run", toy_pipeline)


def base(folder: Path, **settings: object) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **settings)


def export(run: Path, output: Path, *args: str) -> Path:
    erase_main(["export", "--run", str(run), "--output", str(output), *args])
    return output


NAMINGS = ["lora", "lora_diffusers", "lora_peft"]


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


def test_refined_and_edit_are_the_same_edit(run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    refined = load_file(export(run, tmp_path / "kv.safetensors", "--format", "refined"))
    copy = Edit.load(export(run, tmp_path / "copy.safetensors", "--format", "edit"))
    again = copy.weights(backbone_of(base(toy_pipeline)).key_values())
    for name, (W, delta) in changes(run, toy_pipeline).items():
        expected = torch.from_numpy(W + delta).float()
        close(refined[f"{name}.weight"], expected, FLOAT32_EDIT)
        close(again[name], expected, FLOAT32_EDIT)


@pytest.fixture(scope="module")
def half_base(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy in float16, its UNet in shards, with a safety checker, a licence and a card."""
    folder = tmp_path_factory.mktemp("half") / "base"
    base(toy_pipeline, dtype=torch.float16).save_pretrained(folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_pretrained(toy_pipeline, subfolder="unet", dtype=torch.float16).save_pretrained(
        folder / "unet", max_shard_size="300KB"
    )
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**small, "image_size": 8, "patch_size": 8}
    StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "safety_checker"
    )
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "_name_or_path": "somebody/sd"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def half_run(half_base: Path) -> Path:
    return finished_run(half_base.parent / "run", half_base)


def sums(folder: Path) -> dict[str, str]:
    return {str(Path(name).relative_to(folder)): value for name, value in checksums(folder).items()}


TEXT_ENCODER = {"text_encoder/config.json", "text_encoder/model.safetensors"}  # edited for older programs


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


def same_encoder(base: Path, written: Path) -> bool:
    """Whether the copied text encoder has the base's weights, under the names that every program reads."""
    own, copy = (load_file(folder / "text_encoder/model.safetensors") for folder in (base, written))
    return {f"text_model.{name}" for name in own} == set(copy) and all(
        torch.equal(own[name], copy[f"text_model.{name}"]) for name in own
    )


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
