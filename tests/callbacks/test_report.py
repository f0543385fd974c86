"""The report of a run generates the names that it is asked for and no others, and scores a target that is alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from support.runs import Passes, config

from mace_pl.callbacks.report import Report, ends
from mace_pl.cli import erase_main
from mace_pl.concepts.anchors import centred
from mace_pl.concepts.concept import Concept
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.models.sampling import generate

SEEDS, STEPS, GUIDED = 2, 2, 2  # a pass with and one without the prompt
GUIDANCE = 7.5  # as in the configuration
ALONE = ["--model.method", "MaceRefinement", "--save_pipeline", "false", "--trainer.callbacks", "support.runs.Passes"]


@pytest.mark.parametrize(
    ("kept", "target", "names"),
    [("[]", "ship", 1), ("[ship]", "ship", 1), ("[cat, house]", "ship", 3), ("[]", "painter", 1)],
)
def test_the_unet_runs_for_the_names_of_the_report_alone(
    kept: str,
    target: str,
    names: int,
    toy_pipeline: Path,
    toy_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    concept = {"target": target, "anchor": "ground", "kind": "style" if target == "painter" else "object"}
    settings = config(tmp_path, toy_pipeline, "run", [concept])
    scored = ["--kept", kept, "--classifier", str(toy_clip), "--report_seeds", str(SEEDS)]
    erase_main([*settings, *ALONE, *scored])
    assert ("kept: all of its names are erased" in capsys.readouterr().out) == (kept == "[ship]")
    assert Passes.latents == 2 * names * SEEDS * STEPS * GUIDED  # before and after
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    means = {when: metrics["mean_accuracy"].get(when) for when in ("before", "after")}
    if target == "painter":  # a style is no thing that is seen
        assert means == {"before": None, "after": None}
        return
    others = [] if names == 1 else ["cat", "house"]
    assert means["before"]["targets"] == seen(toy_pipeline, toy_clip, [*others, "ground"])
    assert set(metrics["accuracy"]["after"]) == {"ship", *others}
    assert all((means[when]["kept"] is None) == (names == 1) for when in means)
    shown = (tmp_path / "run" / "report" / "summary.md").read_text()
    assert f"{means['before']['targets']:.0%} → {means['after']['targets']:.0%}" in shown
    assert ("preserved" in shown) == (names > 1)


def test_without_names_the_nearest_of_those_that_stay_are_shown(toy_pipeline: Path, tmp_path: Path) -> None:
    """Where damage shows first; as many as the image has columns for."""
    names = ["boat", "cat", "dog", "house", "tree", "horse"]
    settings = [
        *config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "ground"}]),
        "--model.domain_names",
    ]
    erase_main([*settings, json.dumps(names), *ALONE])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    text = centred(pipeline, "a photo of a {}", [*names, "ship"])
    near = [names[i] for i in (text[:-1] @ text[-1]).argsort(descending=True)[:4]]
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert metrics["prompts"] == [f"a photo of a {name}" for name in ("ship", *near)]
    assert Image.open(tmp_path / "run" / "report" / "before_after.png").width > 5 * 32
    many = [{"target": f"thing {i}", "anchor": "ground"} for i in range(9)]
    settings = [*config(tmp_path, toy_pipeline, "many", many), "--model.domain_names", "[cat, dog]"]
    erase_main([*settings, *ALONE])
    metrics = json.loads((tmp_path / "many" / "report" / "metrics.json").read_text())
    assert len(metrics["prompts"]) == 10


def seen(base: Path, clip: Path, others: list[str]) -> float:
    """In how many images of the ship the ship is seen and not one of the others."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    prompts, seeds = ["a photo of a ship"] * SEEDS, [2024 + i for i in range(SEEDS)]
    images = generate(pipeline, prompts, seeds, STEPS, GUIDANCE)
    return float((ClipClassifier(str(clip), ["ship", *others])(images).argmax(-1) == 0).float().mean())


def test_an_anchor_is_an_answer_too(toy_clip: Path) -> None:
    """A house in a ship's place is no ship, though the nearest of the other names may be."""
    concepts = [Concept("ship", "house"), Concept("wizard", "house", "person"), Concept("oil", "art", "style")]
    for kept, answers in ((["cat"], 4), (["cat", "house"], 4), ([], 3)):
        report = Report(concepts, kept, str(toy_clip), 1)
        assert report.judge is not None
        assert report.judge([Image.new("RGB", (8, 8), "red")]).shape == (1, answers)
        assert ("house" in report.classes) == ("house" in kept)
    lone = Report([Concept("ship", "")], [], str(toy_clip), 1).judge
    assert lone is not None and lone([Image.new("RGB", (8, 8), "red")]).shape == (1, 2)


def test_a_preserved_style_is_asked_for_as_a_style(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    """Nobody asks for "a photo of a Monet", and a style is no thing that an image shows."""
    settings = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "ground"}])
    settings += ["--model.domain_styles", "[Monet]", "--model.domain_names", "[cat, monet]", "--kept", "[cat, Monet]"]
    erase_main([*settings, *ALONE, "--classifier", str(toy_clip)])
    metrics = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert metrics["prompts"] == ["a photo of a ship", "a photo of a cat", "a photo in the style of Monet"]
    assert set(metrics["accuracy"]["after"]) == {"ship", "cat"}


@pytest.mark.parametrize("names", [10, 12])
def test_an_image_of_some_names_says_so(names: int, tmp_path: Path) -> None:
    report = Report([Concept("ship", "ground")], [f"thing {i}" for i in range(1, names)], None, 1)
    for when in ("before", "after"):
        report.images[when] = [Image.new("RGB", (8, 8), "red")] * names
    near = [{"name": "boat", "distance": 0.1, "moved": 0.25}]
    report.write(tmp_path / "report", {}, {"ship": {"size": 1.5, "residual": 0.04, "moved": 0.5, "near": near}})
    summary = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    assert "| ship | 1.50 | 0.04 | 0.50 | boat 0.25 |" in summary
    assert ("before_after.png: The first 10 of 12 names." in summary) == (names > 10)
    shown = np.asarray(Image.open(tmp_path / "report" / "before_after.png"))
    last = np.nonzero((shown == (255, 0, 0)).all(-1))[0].max()
    assert bool((shown[last + 1 :] < 128).all(-1).any()) == (names > 10), "words below the images"


def test_images_of_the_original_are_generated_once(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same model, settings, prompt and seed, and so it is planned; damaged files are made again."""
    stored, before = tmp_path / "pictures" / ".originals", {}
    for name, kept, guidance, generated, damaged in (
        ("one", "[cat]", "7.5", 4 + 4, False),
        ("two", "[cat, house]", "7.5", 2 + 6, False),
        ("three", "[cat]", "3.0", 4 + 4, False),
        ("four", "[cat]", "7.5", 0 + 4, False),
        ("five", "[cat]", "7.5", 4 + 4, True),
    ):
        for file in stored.glob("*.png") if damaged else ():
            file.write_bytes(b"no image")
        settings = config(tmp_path, toy_pipeline, name, [{"target": "ship", "anchor": "ground", "kind": "object"}])
        scored = ["--kept", kept, "--classifier", str(toy_clip), "--report_seeds", str(SEEDS)]
        erase_main([*settings, *ALONE, *scored, "--data.image_guidance", guidance])
        assert Passes.latents == generated * STEPS * GUIDED, name
        planned = {"two": "2 images before, 6 after", "four": "0 images before, 4 after", "five": ""}
        assert planned.get(name, "4 images, before and after") in capsys.readouterr().out
        before[name] = json.loads((tmp_path / name / "report" / "metrics.json").read_text())["accuracy"]["before"]
    assert before["five"] == before["four"] == before["one"]
    assert len(list(stored.iterdir())) == 4 + 2 + 4


def test_losses_are_means_of_the_first_and_last_tenth() -> None:
    assert ends([4.0, 2.0, *[9.0] * 16, 1.0, 3.0]) == (3.0, 2.0)
    assert ends([5.0, 1.0]) == (5.0, 1.0) and ends([2.0]) == (2.0, 2.0)
