"""The configurations of the paper run on the toy model for a few steps, with the paper's names and settings."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from support.runs import statistics
from support.tolerances import BY_HAND, close

from mace_pl.cli import erase_main
from mace_pl.concepts.concept import read_concepts
from mace_pl.models.text_encoding import encoder_fingerprint

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs/paper"
FITS = sorted(p for p in PAPER.glob("*.yaml") if not p.stem.startswith("cache_"))
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sums(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = encoder_fingerprint(StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None))
    return statistics(tmp_path_factory.mktemp("sums") / "all.safetensors", own, 1e4 * torch.eye(32).double())


@pytest.mark.parametrize("config", FITS, ids=lambda c: c.stem)
def test_a_configuration_of_the_paper_runs(config: Path, sums: Path, toy_pipeline: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    given = content["data"]["concepts"]
    few = [c.__dict__ for c in read_concepts(str(ROOT / given) if isinstance(given, str) else given)[:6:5]]
    small = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1, "pictures": str(tmp_path / "pictures")}
    model = {name: str(sums) for name in ("prior", "domain") if name in content["model"]}
    content["model"] |= {"pretrained": str(toy_pipeline), **model}
    content["data"] |= {"concepts": few, **small}
    content |= {"kept": [], "trainer": {"accelerator": "cpu", "enable_progress_bar": False}}
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(content))
    erase_main(["fit", "--config", str(path), "--output_dir", str(tmp_path / "run"), "--save_pipeline", "false"])
    edited = load_file(tmp_path / "run/refined.safetensors")
    original = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None).unet.state_dict()
    assert all(bool(weight.isfinite().all()) for weight in edited.values())
    assert any(not torch.equal(weight, original[name]) for name, weight in edited.items())
    masks = {c["target"]: (tmp_path / "pictures" / c["target"].replace(" ", "_") / "masks").is_dir() for c in few}
    assert masks == {c["target"]: c["kind"] != "style" for c in few}


def test_lists_hold_the_papers_names() -> None:
    for kind, name in (("person", "celebrities"), ("style", "artists")):
        concepts = read_concepts(str(PAPER / f"concepts/{name}_100.csv"))
        preserved = read(f"cache_{name}")["data"]["names"]
        assert len(concepts) == len(preserved) == len(set(preserved)) == 100
        assert {c.kind for c in concepts} == {kind}
        assert not {c.target for c in concepts} & set(preserved)  # what is erased is not preserved
    hundred = [c.target for c in read_concepts(str(PAPER / "concepts/celebrities_100.csv"))]
    for count in (5, 10):
        few = read_concepts(str(PAPER / f"concepts/celebrities_{count}.csv"))
        assert [c.target for c in few] == hundred[:count]
    with (PAPER / "concepts/objects_10.csv").open(encoding="utf-8") as file:
        rows = {row["target"]: row["anchor"] for row in csv.DictReader(file)}
    assert tuple(rows) == TEN
    for name in TEN:
        (concept,) = read(f"object_{name}")["data"]["concepts"]
        assert concept["target"] == name and concept["anchor"] == rows[name] and concept["anchor"] not in TEN


@pytest.mark.parametrize(
    ("name", "identity", "prior", "domain_weight", "lr", "steps", "importance"),
    [
        ("object_ship", 1e3, 0, 0, 1e-5, 50, True),
        ("object_automobile", 1e2, 0, 0, 1e-5, 50, True),
        ("object_bird", 1e1, 0, 0, 1e-5, 50, True),
        ("explicit", 0, 7e-7, 0, 1e-5, 120, False),
        ("celebrities_1", 0, 1e-4, 8e3, 1e-4, 50, True),
        ("celebrities_5", 0, 1e-4, 5e4, 1e-4, 50, True),
        ("celebrities_10", 0, 1e-4, 8e4, 1e-4, 50, True),
        ("celebrities_100", 0, 1e-4, 2e5, 1e-4, 50, True),
        ("artists_100", 0, 1e-4, 8e4, 1e-4, 50, True),
    ],
)
def test_settings_are_the_published_ones(
    name: str, identity: float, prior: float, domain_weight: float, lr: float, steps: int, importance: bool
) -> None:
    content = read(name)
    model, data = content["model"], content["data"]
    for stage in ("refine", "fuse"):
        assert model[stage]["identity"] == identity
        close(model[stage].get("prior", 0), prior, BY_HAND)
        close(model[stage].get("domain", 0), prior * domain_weight, BY_HAND)
    assert model.get("lr", 1e-5) == lr and data.get("steps_per_concept", 50) == steps
    assert model.get("importance_sampling", True) is importance
