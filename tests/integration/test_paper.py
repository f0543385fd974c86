"""The configurations of the paper run on the toy model for a few steps, with the paper's names and settings."""

import csv
import re
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
from mace_pl.concepts.concept import AUTO, read_concepts
from mace_pl.concepts.preservation import GivenWeights, weights_of
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


#: λ_I, λ_p and λ_d of stage 1, μ_p and μ_d of stage 3, learning rate, steps, importance sampling
PUBLISHED = {
    "object_ship": (1e3, 0, 0, 0, 0, 1e-5, 50, True),
    "object_automobile": (1e2, 0, 0, 0, 0, 1e-5, 50, True),
    "object_bird": (1e1, 0, 0, 0, 0, 1e-5, 50, True),
    "explicit": (0, 4.9e-13, 0, 7e-7, 0, 1e-5, 120, False),
    "celebrities_1": (0, 1e-8, 8e-5, 1e-4, 0.8, 1e-4, 50, True),
    "celebrities_5": (0, 1e-8, 5e-4, 1e-4, 5, 1e-4, 50, True),
    "celebrities_10": (0, 1e-8, 8e-4, 1e-4, 8, 1e-4, 50, True),
    "celebrities_100": (0, 1e-8, 2e-3, 1e-4, 20, 1e-4, 50, True),
    "artists_100": (0, 1e-8, 8e-4, 1e-4, 8, 1e-4, 50, True),
}


def weights(model: dict[str, Any]) -> list[float]:
    refine, fuse = ({"prior": 0.0, "domain": 0.0} | model[stage] for stage in ("refine", "fuse"))
    assert refine["identity"] == fuse["identity"]
    return [refine["identity"], refine["prior"], refine["domain"], fuse["prior"], fuse["domain"]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_that_the_published_experiments_ran(name: str) -> None:
    content = read(name)
    model, data = content["model"], content["data"]
    *expected, lr, steps, importance = PUBLISHED[name]
    found = weights(model)
    assert found == expected
    if found[3]:  # s² and s²·w beside s and s·w
        close([found[1] / found[3], found[2] / found[3]], [found[3], found[4]], BY_HAND)
    assert model.get("lr", 1e-5) == lr and data.get("steps_per_concept", 50) == steps
    assert model.get("importance_sampling", True) is importance


@pytest.mark.parametrize("config", FITS, ids=lambda c: c.stem)
def test_weights_of_the_paper_do_not_follow_the_number_of_targets(config: Path) -> None:
    model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
    model |= {"domain_names": model.get("domain_names", AUTO)}
    found = weights_of([GivenWeights(**model[stage]) for stage in ("refine", "fuse")], model, by_number=True)
    for stage, own in zip(("refine", "fuse"), found, strict=True):
        given = model[stage]
        assert own.absolute and own.identity == given["identity"]
        assert own.prior == given["prior"] if "prior" in given else "prior" not in model  # which has nothing to weigh
        assert own.domain * 100**own.growth == given.get("domain", 0)


def test_the_docs_have_the_settings_of_the_configurations() -> None:
    page = (ROOT / "docs" / "methods" / "mace.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page.split("## Published settings")[1].split("## ")[0], re.MULTILINE)
    assert [name for name, _ in rows] == list(PUBLISHED)
    for name, row in rows:
        lr, steps, *numbers, importance, masks = (cell.strip() for cell in row.split("|"))
        *expected, own_lr, own_steps, sampled = PUBLISHED[name]
        assert [float(number) for number in numbers] == expected
        assert (float(lr), int(steps), importance == "on") == (own_lr, own_steps, sampled)
        assert (masks == "no") == (name == "artists_100")


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if row[1]] + ["mixed"])
def test_the_papers_own_reading_stands_beside_it(name: str) -> None:
    text = (PAPER / f"{name}.yaml").read_text(encoding="utf-8")
    (reading,) = re.findall(r"^ +# .*refine: (\{.*\})$", text, re.MULTILINE)
    assert yaml.safe_load(reading) == yaml.safe_load(text)["model"]["fuse"]  # one λ in both stages
