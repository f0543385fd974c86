"""The bridge to eval-unlearn: images by base and edit, its inputs, and the program itself where it is installed."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.finished import finished_run
from support.forks import forked
from transformers import CLIPImageProcessor

from mace_pl.commands.eval_unlearn import Technique, write_inputs
from mace_pl.commands.export import export_run
from mace_pl.models.sampling import generate

ROOT = Path(__file__).resolve().parents[2]
GROUP = "eval_unlearn.techniques"
PROMPTS = ["a photo of a ship", "a photo of a ship", "a cat"]


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("eval_unlearn") / "run", toy_pipeline)


def entry_points() -> dict[str, str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, str] = tomllib.load(file)["project"]["entry-points"][GROUP]
    return found


def test_the_entry_point_is_the_technique() -> None:
    ((name, value),) = entry_points().items()
    assert name == "mace_pl"
    assert importlib.metadata.EntryPoint(name, value, GROUP).load() is Technique


def test_nothing_of_eval_unlearn_is_imported(tmp_path: Path) -> None:
    listed = "[name for name in sys.modules if name.startswith('eval_unlearn')]"
    code = f"import sys, mace_pl.commands.eval_unlearn; print({listed})"
    (tmp_path / "imports.py").write_text(code)
    done = forked(tmp_path / "imports.py", [])
    assert done.stdout.strip() == "[]", done.stderr


def test_images_are_those_of_the_exported_pipeline(run: Path, tmp_path: Path) -> None:
    technique = Technique(str(run), "Ship", steps=2, guidance=5.0, seed=4, batch_size=2, device="cpu")
    export_run(str(run), "pipeline", output=str(tmp_path / "pipeline"))
    other = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", safety_checker=None, dtype=torch.float32)
    seeds = [4, 5, 6]
    expected = generate(other, PROMPTS, seeds, steps=2, guidance=5.0)
    again = generate(other, PROMPTS, [7, 8, 9], steps=2, guidance=5.0)
    for found, wanted in (
        (technique.generate(prompts=PROMPTS), expected),
        (technique.generate(prompts=PROMPTS, seed=None), again),  # the next batch has the next seeds
        (technique.generate(prompts=PROMPTS, seed=4), expected),
    ):
        for one, two in zip(found, wanted, strict=True):
            assert np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).max() <= 1


def test_targets_are_what_is_erased_and_anchors_what_stays(run: Path, tmp_path: Path) -> None:
    folder = write_inputs(str(run), str(tmp_path / "bench"), images=31)
    config = json.loads((folder / "ship.json").read_text())
    assert config["technique"] == {"name": "mace_pl", "config": {"run": str(run), "erase_concept": "ship"}}
    (metric,) = config["metrics"]
    assert metric["name"] == "ua_ira" and metric["config"]["batch_size"] == 62
    for role, name in (("target", "ship"), ("retain", "ground")):
        assert metric["config"][f"{role}_concept"] == name
        with open(metric["config"][f"{role}_prompts_path"], newline="", encoding="utf-8") as file:
            prompts = [row["prompt"] for row in csv.DictReader(file)]
        assert len(prompts) == 31 and all(name in prompt for prompt in prompts) and prompts[30] == prompts[0]


def test_other_targets_and_other_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"erase_concept=dog is no target of .*run\. It erases ship"):
        Technique(str(run), "dog")
    with pytest.raises(ValueError, match="is no output folder of fit or fuse"):
        write_inputs(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="images=0 must be at least 1"):
        write_inputs(str(run), str(tmp_path / "out"), images=0)
    assert not (tmp_path / "out" / "ship.json").exists()


def test_eval_unlearn_scores_the_edit(run: Path, toy_clip: Path, tmp_path: Path) -> None:
    """Its own command, entry points found as pip leaves them, the CLIP model that it wants from a cache of the hub."""
    pytest.importorskip("eval_unlearn")
    hub = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    shutil.copytree(toy_clip, hub / "snapshots" / "0")
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(hub / "snapshots" / "0")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0")
    info = tmp_path / "site" / "mace_pl-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mace-pl\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in entry_points().items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    file = write_inputs(str(run), str(tmp_path / "bench"), images=2) / "ship.json"
    config = json.loads(file.read_text())
    config["technique"]["config"] |= {"steps": 2, "device": "cpu"}
    file.write_text(json.dumps(config))
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "eval_unlearn.cli", "run", "--config", str(file)]
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "bench/results/mace_pl_ship_latest_report.json").read_text())
    assert report["technique_name"] == "mace_pl" and report["erase_concept"] == "ship"
    assert len(list((tmp_path / "bench/results").rglob("*.png"))) == 4
