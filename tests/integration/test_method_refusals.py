"""What closed forms cannot do ends in one line that names it and the way out, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.runs import CONCEPTS, config, exit_message
from support.tolerances import FLOAT32_EDIT, close

from mace_pl.cli import erase_main
from mace_pl.methods.edit import Edit
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline

QUIET = ["--report_seeds", "0", "--save_pipeline", "false"]
COLOURS = ("red", "blue", "green", "yellow")
THINGS = ("house", "bird", "cat", "person", "street", "airplane", "sky", "art", "picture", "background")
MANY = json.dumps([f"{first} {thing}" for first in (*COLOURS, *THINGS) for thing in THINGS])  # far more than 32 tokens
FILES = {
    "csv": "target,anchor,kind\nship,,object\ndog,,\n",
    "json": json.dumps([{"target": "ship", "anchor": "", "kind": "object"}, {"target": "dog", "anchor": None}]),
    "yaml": "- {target: ship, anchor: '', kind: object}\n- {target: dog, anchor: }\n",
}


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("UCE", {"strength": 0}, "model.method.strength=0.0 must be above 0 (published: 1), and finite."),
        ("UCE", {"strength": ".inf"}, "model.method.strength=inf must be above 0"),
        ("RECE", {"strength": -1}, "model.method.strength=-1.0 must be above 0"),
        ("RECE", {"rounds": 0}, "model.method.rounds=0 must be at least 1. Without rounds it is model.method UCE."),
        ("RECE", {"ridge": 0}, "model.method.ridge=0.0 must be above 0 (published: 0.1 and 1e-3)"),
        ("SPEED", {"threshold": ".nan"}, "model.method.threshold=nan must be above 0 (published: 0.1)"),
        ("SPEED", {"copies": -1}, "model.method.centres=3 and copies=-1 must be at least 0."),
        ("SPEED", {"centres": -1}, "model.method.centres=-1 and copies=10 must be at least 0."),
        ("NullSpace", {"share": 0}, "model.method.share=0.0 must be above 0 and at most 1."),
        ("CURE", {"alpha": 0.5}, "model.method.alpha=0.5 must be at least 1 (published: 2 to 5), and finite."),
        ("OCE", {"strength": 0}, "model.method.strength=0.0 must be above 0 (published: 800)"),
        ("SPEED", {"form": "layer"}, "form"),
    ],
)
def test_a_setting_out_of_range(
    method: str,
    settings: dict[str, object],
    said: str,
    toy_pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"--model.method.{name}={value}" for name, value in settings.items()]
    refused(tmp_path, toy_pipeline, ["--model.method", method, *options], said, capsys)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("UCE", ["--model.refine.identity", "0"], "Raise --model.refine.identity above 0"),
        ("OCE", ["--model.refine.identity", "0"], "Raise --model.refine.identity above 0 (published: 10)"),
        (
            "NullSpace",
            ["--model.method.share", "1", "--model.domain_names", MANY, "--model.refine.domain", "1"],
            "Lower --model.method.share, or preserve fewer names.",
        ),
        (
            "SPEED",
            ["--model.method.threshold", "1e-9", "--model.domain_names", MANY, "--model.method.copies", "50"],
            "model.method.threshold=1e-09: no direction is left to edit. Raise it.",
        ),
    ],
)
def test_a_singular_system(
    method: str,
    options: list[str],
    said: str,
    toy_pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(tmp_path, toy_pipeline, ["--model.method", method, *options], said, capsys)


@pytest.mark.parametrize("ending", FILES)
def test_files_without_anchors_are_for_methods_without(
    ending: str, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"concepts.{ending}"
    file.write_text(FILES[ending])
    args = [*config(tmp_path, toy_pipeline, "run"), "--data.concepts", str(file), *QUIET]
    erase_main([*args, "--model.method", "CURE"])
    listed = [{"target": "ship", "anchor": "", "kind": "object"}, {"target": "dog", "anchor": ""}]
    erase_main([*config(tmp_path, toy_pipeline, "listed", listed), "--model.method", "CURE", *QUIET])
    close(*(load_file(tmp_path / run / "refined.safetensors") for run in ("run", "listed")), FLOAT32_EDIT)
    capsys.readouterr()  # what these two have said
    for method in ("UCE", "Mace"):
        said = "the anchor of 'ship' is empty"
        refused(tmp_path, toy_pipeline, ["--model.method", method, "--data.concepts", str(file)], said, capsys)


@pytest.mark.parametrize("ending", FILES)
def test_anchors_out_of_a_file_are_none_for_cure(
    ending: str, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"concepts.{ending}"
    file.write_text("target,anchor\nship,ground\n" if ending == "csv" else '[{"target": "ship", "anchor": "ground"}]')
    said = "'ship' has the anchor 'ground', for which CURE(alpha=2.0) has no use"
    refused(tmp_path, toy_pipeline, ["--model.method", "CURE", "--data.concepts", str(file)], said, capsys)


def test_a_matrix_for_each_layer_is_an_exact_edit_and_no_small_one(toy_pipeline: Path, tmp_path: Path) -> None:
    """What OCE writes as ``edit.safetensors``."""
    erase_main([*config(tmp_path, toy_pipeline, "run", CONCEPTS[:1]), "--model.method", "OCE", *QUIET])
    edit, refined = (tmp_path / "run" / f"{name}.safetensors" for name in ("edit", "refined"))
    original = backbone_of(load_pipeline(str(toy_pipeline))).key_values()
    weights = {f"{name}.weight": W for name, W in Edit.load(edit).weights(original).items()}
    close(weights, load_file(refined), FLOAT32_EDIT)
    assert edit.stat().st_size > refined.stat().st_size


def refused(
    folder: Path, base: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str], name: str = "refused"
) -> None:
    message = exit_message([*config(folder, base, name), *options, *QUIET], capsys).strip()
    assert said in message and "\n" not in message and "Traceback" not in message, message
    assert not (folder / name).exists() and not (folder / "pictures").exists()
