"""Closed forms that train nothing, through whole runs: no image is generated, no LoRA is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from support.families import family
from support.finished import noise_of
from support.runs import CONCEPTS, config, exit_message
from support.tolerances import FLOAT32_EDIT, MOVED, above, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.concepts.concept import Concept, templates_of
from mace_pl.export.apply import apply_file
from mace_pl.methods.chosen import chosen
from mace_pl.methods.closed_form import Preservation, refine
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.run import Run
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import Refined, refine_concepts

METHODS = {
    "MaceRefinement": [],
    "UCE": ["--model.method.strength", "0.5"],
    "RECE": ["--model.method.rounds", "2"],
    "SPEED": [],
    "SPEED layers": ["--model.method.form", "layers"],
    "NullSpace": [],
    "CURE": [],
    "OCE": [],
}
NAMES = ["--model.domain_names", "[cat, bird, house, person]", "--model.refine.domain", "1.0"]
QUIET = ["--report_seeds", "0"]


def concepts(method: str) -> list[dict[str, str]]:
    return [c | {"anchor": ""} for c in CONCEPTS] if method == "CURE" else CONCEPTS


def fitted(folder: Path, base: Path, method: str) -> Path:
    chosen_method = ["--model.method", method.split()[0], *METHODS[method]]
    args = config(folder, base, method, concepts(method))
    erase_main([*args, *chosen_method, *NAMES, *QUIET])
    return folder / method


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    made = fitted(folder, toy_pipeline, request.param)
    assert not (folder / "pictures").exists()
    return made


def test_no_image_is_generated_and_no_lora_is_trained(run: Path) -> None:
    assert not (run / "stages").exists() and not (run / "report" / "before_after.png").exists()
    assert len(list((run / "statistics").glob("*.safetensors"))) == 3


def test_weights_and_edit_agree_and_differ_from_the_original(run: Path, toy_pipeline: Path) -> None:
    original = backbone_of(load_pipeline(str(toy_pipeline))).key_values()
    refined = {name.removesuffix(".weight"): W for name, W in load_file(run / "refined.safetensors").items()}
    edit = Edit.load(run / "edit.safetensors")
    close(edit.weights(original), refined, FLOAT32_EDIT)
    for name, W in original.items():
        still = name.endswith("to_k") and edit.values_only
        assert torch.equal(refined[name], W) == still
    assert edit.values_only == run.name.startswith(("SPEED", "OCE"))
    above(max(float((refined[name] - W).abs().max()) for name, W in original.items()), MOVED)


def test_what_is_exported_generates_images(run: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a photo of a ship", num_inference_steps=1)
    for form in ("lora", "unet"):
        assert export_run(run=str(run), format=form).exists()
    method = chosen(yaml.safe_load((run / "config.yaml").read_text())["model"]["method"])
    for card in ("pipeline/README.md", "lora/README.md"):
        assert f"by\n{method.source} with" in (text := (run / card).read_text()) or f"by {method.source} with" in text
    assert f"`model.method` | {method!r}" in text


def solved(pipeline: Any, method: str, targets: int) -> Refined:
    """Stage 1 alone, in memory, with the settings of the runs."""
    given = {
        name.removeprefix("--model.method."): value for name, value in zip(*[iter(METHODS[method])] * 2, strict=True)
    }
    settings = {name: yaml.safe_load(value) for name, value in given.items()}
    form = chosen({"class_path": f"mace_pl.methods.{method.split()[0]}", "init_args": settings})
    erased = [Concept(**c) for c in concepts(method)[:targets]]
    wanted = Preserving(Preservation(1.0, domain_weight=1.0), names=["cat", "bird", "house", "person"])
    templates = templates_of(None, erased)
    return refine_concepts(pipeline, erased, templates, form, wanted, True)


def test_a_run_without_a_concept_is_the_run_that_never_had_it(run: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    fused = load_file(
        fuse_run(str(run), str(tmp_path / "fused"), drop=["dog"], save_pipeline=False) / "refined.safetensors"
    )
    alone = solved(load_pipeline(str(toy_pipeline)), run.name, targets=2).weights()
    close(fused, {f"{name}.weight": W for name, W in alone.items()}, FLOAT32_EDIT)


def test_degrees_are_taken_or_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fuse", "--run", str(run), "--output_dir", str(tmp_path / "half"), "--save_pipeline", "false"]
    if run.name in ("CURE", "OCE", "RECE"):
        assert f"{run.name}(" in exit_message([*args, "--weights", "ship=0.5"], capsys)
        assert not (tmp_path / "half").exists()
    else:
        erase_main([*args, "--weights", "ship=0,painter=0,dog=0"])
        whole, none = (load_file(folder / "refined.safetensors") for folder in (run, tmp_path / "half"))
        above(max(float((whole[name] - W).abs().max()) for name, W in none.items()), MOVED)
        base = yaml.safe_load((run / "config.yaml").read_text())["model"]["pretrained"]
        original = backbone_of(load_pipeline(base)).key_values()
        close(none, {f"{name}.weight": W for name, W in original.items()}, FLOAT32_EDIT)
    assert "the run trained no LoRAs" in exit_message([*args, "--method", "added"], capsys)
    assert "has no effect with method refined" in exit_message([*args, "--fuse", "{identity: 3}"], capsys)


@pytest.mark.parametrize("name", ["UCE", "MaceRefinement"])
def test_the_sums_in_files_give_the_edit(name: str, tmp_path: Path, toy_pipeline: Path) -> None:
    args = config(tmp_path, toy_pipeline, name)
    erase_main([*args, "--model.method", name, *METHODS[name], *QUIET, "--save_pipeline", "false"])
    sums = [Run.load(tmp_path / name).concept(target)[0] for target in ("ship", "painter", "dog")]
    strength = 0.5 if name == "UCE" else 1.0
    F, G = (strength * torch.stack([getattr(s, part) for s in sums]).sum(0) for part in ("F", "G"))
    edit = Edit.load(tmp_path / name / "edit.safetensors")
    close(edit.R, refine(F, G, Preservation(identity=1.0)).float(), FLOAT32_EDIT)
    assert edit.factors == {}


@pytest.mark.parametrize("name", ["sd1", "sd2_v", "sdxl"])
def test_families_are_edited_by_every_method(name: str, tmp_path: Path, toy_pipeline: Path) -> None:
    family(name, toy_pipeline).save_pretrained(tmp_path / "base")
    pipeline = load_pipeline(str(tmp_path / "base"))
    before, original = noise_of(pipeline.unet), backbone_of(pipeline).key_values()
    for method in METHODS:
        solved(pipeline, method, targets=2).edit.save(tmp_path / f"{method}.safetensors", {})
        apply_file(pipeline, tmp_path / f"{method}.safetensors", "model.apply")
        above((noise_of(pipeline.unet) - before).abs().max(), MOVED)
        backbone_of(pipeline).set_key_values(original)


@pytest.mark.parametrize(("name", "method"), [("sd2_v", "NullSpace"), ("sdxl", "SPEED layers"), ("sdxl", "OCE")])
def test_a_run_of_a_family_is_loaded_by_diffusers(name: str, method: str, tmp_path: Path, toy_pipeline: Path) -> None:
    family(name, toy_pipeline).save_pretrained(tmp_path / "base")
    made = fitted(tmp_path, tmp_path / "base", method)
    before, after = (DiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "base", made / "pipeline"))
    above((noise_of(before.unet) - noise_of(after.unet)).abs().max(), MOVED)


@pytest.mark.parametrize("refinement", ["SPEED", "RECE"])
def test_loras_and_fusion_follow_another_refinement(refinement: str, tmp_path: Path, toy_pipeline: Path) -> None:
    args = [*config(tmp_path, toy_pipeline, "run", CONCEPTS[:1]), *NAMES, *QUIET, "--save_pipeline", "false"]
    erase_main([*args, "--model.method", "Mace", "--model.method.refinement", refinement])
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["method"]
    assert type(chosen(settings).refinement).__name__ == refinement  # type: ignore[attr-defined]
    assert (tmp_path / "run" / "stages" / "lora" / "ship.safetensors").exists()
    again = fuse_run(str(tmp_path / "run"), str(tmp_path / "again"), save_pipeline=False)
    close(*(load_file(folder / "refined.safetensors") for folder in (again, tmp_path / "run")), FLOAT32_EDIT)


def test_a_method_that_does_not_exist_is_named(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run")
    assert "model.method" in exit_message([*args, "--model.method", "ECU"], capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.method", "CURE"], "'ship' has the anchor 'ground', for which CURE(alpha=2.0) has no use"),
        (["--model.method", "UCE", "--data.concepts", "[{target: ship, anchor: ''}]"], "anchor of 'ship' is empty"),
        (["--model.method", "NullSpace", "--model.method.share", "2"], "model.method.share=2"),
        (["--model.method", "UCE", "--model.refine.identity", "0"], "singular"),  # three tokens span three dimensions
        (["--model.method", "Mace", "--model.method.refinement", "Mace"], "trains LoRAs itself"),
        (
            ["--model.domain_vocabulary", "[cat]", "--model.refine.domain", "0", "--model.fuse.domain", "0"],
            "model.domain_vocabulary has no effect",
        ),
        (["--model.domain_vocabulary", "[ship]"], "model.domain_vocabulary: every name of it is erased"),
        (
            ["--model.domain_vocabulary", "[cat]", "--model.refine.domain", "1", "--model.domain_affected", "0"],
            "model.domain_affected=0 must be at least 1",
        ),
        (
            ["--model.method", "UCE", "--model.fuse.domain", "5", "--model.domain_names", "[cat]"],
            "model.domain_names has no effect: model.refine.domain is 0, and the method has no fusion. Raise it.",
        ),
        *(
            ([f"--model.{weight}={given}"], f"model.{weight}={given.lstrip('.')} must be at least 0, and finite")
            for weight, given in (("refine.domain", "-0.01"), ("refine.identity", ".nan"), ("fuse.prior", ".inf"))
        ),
    ],
)
def test_what_a_method_cannot_do_is_refused(
    options: list[str], message: str, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path, toy_pipeline, "run")
    found = exit_message([*args, *options, *QUIET], capsys)
    assert message in found and "Traceback" not in found
    assert not (tmp_path / "run").exists()
