"""What exported files say to other programs: metadata, cards, and what no program may take for the edit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.families import family
from support.finished import finished_run
from support.runs import content_hash, naming

from mace_pl.commands.export import export_run
from mace_pl.export.metadata import safe_name
from mace_pl.files.paths import model_name, place_name
from mace_pl.methods.edit import ConceptSums
from mace_pl.run import PLACES, Run

#: version, whether it is of the second, and architecture, by family
WORDS = {
    "sd1": ("sd_v1", "False", "stable-diffusion-v1", "epsilon"),
    "sd2": ("sd_v2", "True", "stable-diffusion-v2-512", "epsilon"),
    "sd2_v": ("sd_v2", "True", "stable-diffusion-v2-768-v", "v"),
    "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base", "epsilon"),
}


def made(folder: Path, name: str, toy: Path) -> tuple[Path, Path]:
    """A base of a family, with a licence, and a finished run on it."""
    pipeline = family(name, toy)
    pipeline.save_pretrained(folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# Base\n")
    return folder / "base", finished_run(folder / "erase_ship", folder / "base")


def header(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


@pytest.mark.parametrize("name", WORDS)
def test_a_lora_and_a_checkpoint_say_what_they_are(name: str, tmp_path: Path, toy_pipeline: Path) -> None:
    _, run = made(tmp_path, name, toy_pipeline)
    lora = export_run(run=str(run), format="lora", rank=2) / "erase_ship.safetensors"
    single = export_run(run=str(run), format="single_file")
    version, second, architecture, prediction = WORDS[name]
    said = header(lora)
    assert (said["ss_base_model_version"], said["ss_v2"]) == (version, second)
    assert (said["ss_network_module"], said["ss_network_dim"]) == ("networks.lora", "2")
    assert (float(said["ss_network_alpha"]), said["ss_output_name"]) == (2.0, "erase_ship")
    for file, end in ((lora, "/lora"), (single, "")):
        found = {key.removeprefix("modelspec."): value for key, value in header(file).items() if "modelspec." in key}
        assert found["sai_model_spec"] == "1.0.0"
        assert found["architecture"] == architecture + end
        assert found["implementation"] and found["title"] == "erase_ship"
        assert found["license"] == "creativeml-openrail-m" and found["prediction_type"] == prediction
        assert found["resolution"] == "16x16"
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", found["date"])
        assert "ship" in found["description"]
        assert "trigger_phrase" not in found and "usage_hint" not in found
        assert found["hash_sha256"] == content_hash(file)
        assert json.loads(header(file)["mace_pl"])["pretrained"] == "base"


@pytest.fixture(scope="module")
def written(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a finished run in every format, with what stage 2 leaves."""
    base, run = made(tmp_path_factory.mktemp("written"), "sd1", toy_pipeline)
    for form in PLACES:
        if form != "edit":
            export_run(run=str(run), format=form)
    shapes = {n: w.shape for n, w in load_file(run / "refined.safetensors").items()}
    factors = {n.removesuffix(".weight"): (torch.ones(1, s[1]), torch.ones(s[0], 1)) for n, s in shapes.items()}
    width = next(iter(shapes.values()))[1]
    sums = ConceptSums(*[i * torch.eye(width, dtype=torch.float64) for i in (1, 2, 3)])
    Run.load(run).save_concept("ship", sums, factors)
    return base, run


def test_no_file_names_a_place_of_this_machine(written: tuple[Path, Path]) -> None:
    base, run = written
    assert not naming(run, base.parent, "config.yaml")


@pytest.mark.parametrize("form", ["lora", "lora_diffusers", "lora_peft", "pipeline"])
def test_the_card_can_be_read_and_its_snippet_generates_an_image(
    written: tuple[Path, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = written
    card = ModelCard.load(run / form / "README.md")
    assert card.data.base_model_relation == ("finetune" if form == "pipeline" else "adapter")
    assert card.data.base_model is None  # no model of the hub
    assert card.data.license == "creativeml-openrail-m"
    assert ("lora" in card.data.tags) == (form != "pipeline")
    assert "| ship | ground | object | 1 |" in card.text
    if form == "pipeline":
        return
    (tmp_path / "path" / "to" / "this").mkdir(parents=True)
    (tmp_path / "path" / "to" / "base").symlink_to(base)
    (tmp_path / "path" / "to" / "this" / "folder").symlink_to(run / form)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0], names)
    assert names["image"].size == (16, 16)


def test_a_folder_passes_on_nothing_that_speaks_of_the_old_weights(tmp_path: Path, toy_pipeline: Path) -> None:
    base, run = made(tmp_path, "sd1", toy_pipeline)
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "modelspec.hash_sha256": "0xold", "title": "old"})
    written = export_run(run=str(run), format="pipeline")
    assert header(written / "unet" / file.name) == {"format": "pt"}


def test_a_hub_id_is_the_base_of_the_card(tmp_path: Path, toy_pipeline: Path) -> None:
    base, run = made(tmp_path, "sd1", toy_pipeline)
    index = json.loads((base / "model_index.json").read_text()) | {"_name_or_path": "somebody/sd"}
    (base / "model_index.json").write_text(json.dumps(index))
    lora = export_run(run=str(run), format="lora_peft", rank=1)
    card = ModelCard.load(lora / "README.md")
    assert card.data.base_model == "somebody/sd"
    assert 'DiffusionPipeline.from_pretrained("somebody/sd")' in card.text
    config = json.loads((lora / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_alpha"], config["r"]) == ("somebody/sd", 1, 1)


@pytest.mark.parametrize(
    "name", ["stage 2", "statistics", "edit.safetensors", "refined.safetensors", "unet.safetensors"]
)
def test_what_is_no_lora_is_refused_by_loaders_of_loras(written: tuple[Path, Path], name: str) -> None:
    base, run = written
    places = {"stage 2": Run.load(run).lora_file("ship"), "statistics": Run.load(run).statistics_file("ship")}
    file = places.get(name, run / name)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    assert not any(key.startswith("lora_unet_") for key in load_file(file))  # nor has it a name of kohya's


def test_stage_2_is_read_as_it_was_written(written: tuple[Path, Path]) -> None:
    sums, factors = Run.load(written[1]).concept("ship")
    assert all(A.shape[0] == B.shape[1] == 1 and bool((A == 1).all()) for A, B in factors.values())
    assert len(factors) == len(load_file(written[1] / "refined.safetensors")) and sums.F.shape == sums.G.shape


def test_stage_2_keys_are_unknown_to_peft(written: tuple[Path, Path]) -> None:
    base, run = written
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    adapted = PeftModel.from_pretrained(unet, run / "lora_peft")
    found = adapted.load_state_dict(load_file(Run.load(run).lora_file("ship")), strict=False)
    assert set(found.unexpected_keys) == set(load_file(Run.load(run).lora_file("ship")))


def test_names_hold_no_place_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    assert model_name(str(tmp_path / "models" / "own")) == "own"
    assert model_name(str(tmp_path / "gone" / "sd.safetensors")) == "sd.safetensors"
    assert model_name("somebody/sd") == "somebody/sd"
    assert place_name(tmp_path / "runs" / "ship" / "refined.safetensors") == "ship/refined.safetensors"
    assert place_name(tmp_path / "runs" / "ship") == "ship"
    assert place_name("runs/ship") == "runs/ship"
    monkeypatch.chdir(tmp_path)
    assert place_name(tmp_path / "runs" / "ship") == "runs/ship"
    assert model_name("models/own") == "own"  # a folder here, though it has the form of a hub id
    assert safe_name(tmp_path / "a:b, c") == "a_b__c" and safe_name(Path("/")) == "edit"


def test_the_unet_becomes_a_file_of_pytorch_by_two_lines(
    written: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = written
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "unet.pt" in block)
    (tmp_path / "checkpoints" / "erased").mkdir(parents=True)
    (tmp_path / "checkpoints" / "erased" / "erase_ship").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    assert not unet.load_state_dict(torch.load(tmp_path / "unet.pt", weights_only=True)).missing_keys
    edited = DiffusionPipeline.from_pretrained(run / "pipeline").unet.state_dict()
    assert all(torch.equal(value, edited[key]) for key, value in unet.state_dict().items())
