"""The command that makes the tables of the results page: what it erases, and a small run of all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.forks import forked

from mace_pl.concepts.preservation import BY_NUMBER
from mace_pl.files.paths import resolve

STAGES = ("refine", "fuse")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
NAMES = (
    "compare_methods",
    "compared",
    "compared_edits",
    "compared_images",
    "compared_page",
    "written",
    "table_sets",
    "tables",
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they import each other from their folder."""
    folder = str(ROOT / "scripts")
    sys.path.insert(0, folder)
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(folder)
        for name in NAMES:
            sys.modules.pop(name, None)


def test_the_tables_are_those_of_the_page(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    vocabularies, tables = scripts["tables"].read_tables(scripts["tables"].FILE)
    assert [len(one.concepts()) for one in tables["ten"]] == [1] * 10 + [5]
    assert [len(one.concepts()) for one in tables["characters"]] == [1, 3, 5, 10]
    assert [len(one.concepts()) for one in tables["manners"]] == [1, 5]
    assert [len(one.concepts()) for one in tables["forty"]] == [40]
    for one in (one for own in tables.values() for one in own):
        vocabulary = vocabularies[one.vocabulary]
        assert {concept.target for concept in one.concepts()} <= {*vocabulary.names} & {*vocabulary.keep}, one.name
        one.method().made(one.method().published)  # its class takes its settings
    text = scripts["written"].inserted(PAGE, {name: f"| {name} |" for name in tables})
    assert all(f"\n| {name} |\n" in text for name in tables)


def test_every_single_target_has_the_same_settings_and_no_anchor_of_its_own(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _, tables = scripts["tables"].read_tables(scripts["tables"].FILE)
    single = [one for one in tables["ten"] if len(one.concepts()) == 1]
    assert len({str(sorted(one.method().published.items())) for one in single}) == 1
    assert {concept.anchor for one in single for concept in one.concepts()} == {"auto"}


def config(place: Path) -> str:
    """Settings of a small run; it names two concepts with their anchors, and anchors for targets that have none."""
    concepts = [{"target": "ship", "anchor": "house"}, {"target": "frog", "anchor": "book"}]
    data: dict[str, Any] = {"concepts": concepts, "anchors": ["house", "book", "pizza", "clock"]}
    data |= {"image_steps": 1, "steps_per_concept": 1, "images_per_concept": 2}
    model = {"lr": 1e-3}  # weights follow the number of targets
    (place / "two.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    return str(place / "two.yaml")


def test_weights_are_those_of_fit(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    sets, given = scripts["tables"].Set, {"table": "t", "name": "n", "vocabulary": "v", "config": config(tmp_path)}
    settings = sets(**given, targets=("ship",)).method().published
    weights = [{t: settings[f"{stage}.{t}"] for t in vars(own)} for stage, own in zip(STAGES, BY_NUMBER, strict=True)]
    assert weights == [vars(own) for own in BY_NUMBER]
    assert settings["data.steps_per_concept"] == 1 and "data.concepts" not in settings
    twice = sets(**given, changes={"class": "MaceRefinement"}, times={"refine.domain": 2}).method()
    assert (twice.published["refine.domain"], twice.class_path) == (0.3, "mace_pl.methods.MaceRefinement")


def test_a_set_that_is_alone_gives_fit_nothing_but_its_targets(
    scripts: dict[str, ModuleType], toy_pipeline: Path, tmp_path: Path
) -> None:
    given = {"table": "t", "name": "n", "vocabulary": "v", "config": config(tmp_path), "alone": True}
    one, cheap = scripts["tables"].Set(**given, targets=("ship",)), ["--data.image_steps", "1"]
    cheap += ["--data.images_per_concept", "1", "--data.steps_per_concept", "1", "--data.pictures", str(tmp_path / "p")]
    run = one.ordered(str(toy_pipeline), tmp_path / "run", *cheap)
    said = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert said["model"]["lr"] != 1e-3 and said["model"]["prior"] is None and said["data"]["anchors"] is None
    (concept,) = said["data"]["concepts"]
    assert concept["target"] == "ship" and concept["anchor"] not in {"", "auto"} and said["model"]["domain_names"]
    before = (run / "edit.safetensors").stat().st_mtime_ns
    assert one.ordered(str(toy_pipeline), run) == run and (run / "edit.safetensors").stat().st_mtime_ns == before


def test_sets_with_levels_and_sets_without_share_a_table(scripts: dict[str, ModuleType]) -> None:
    top = {"top1": {"acc_e": 0.5, "acc_s": 1.0, "h": 0.8}, "shares": {"empty": 0.0}}
    seen: dict[str, Any] = {"before": top, "after": top, "fails": []}
    levels = {"sentences": {"before": {"target": 1.0}, "target": 0.25}}
    rows = [
        {"set": name, "concepts": [{"anchor": "house"}], "results": {"judge": found, "clip": seen}}
        for name, found in (("with", seen | {"levels": levels}), ("without", seen))
    ]
    _, _, one, other, mean = scripts["written"].table(rows).splitlines()
    assert one.endswith("| 1.000 → 0.250 | – |") and other.endswith("| – | – |") and "0.800" in mean


def small(place: Path) -> Path:
    """A file of three tables."""
    three: dict[str, Any] = {"names": ["ship", "frog", "dog"], "others": ["house", "book", "pizza", "clock"]}
    three |= {"keep": ["ship", "frog", "dog", "house"], "synonyms": {"ship": ["boat"]}, "seeds": 1, "level_seeds": 0}
    styles = {"names": ["noto", "blob"], "judged": "styles", "keep": ["noto", "blob"], "seeds": 1, "level_seeds": 0}
    styles |= {"templates": ["a cat in the style of {}"], "beside": "three"}
    own = {"vocabulary": "three", "config": config(place)}
    tables = {
        "both": {"ship": {**own, "targets": ["ship"]}, "ship and frog": own},
        "trade-off": {
            "added": {**own, "changes": {"fusion": "added"}},
            "half": {**own, "changes": {"class": "MaceRefinement"}, "times": {"refine.domain": 0.5}},
        },
        "styles": {"one": {**own, "vocabulary": "styles", "targets": ["noto"]}},
    }
    file = place / "tables.yaml"
    file.write_text(yaml.safe_dump({"vocabularies": {"three": three, "styles": styles}, "tables": tables}))
    return file


@pytest.mark.bundled
def test_tables_and_a_page_come_out_of_two_processes_and_what_is_done_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("both", "trade-off", "styles")))
    command = ["--file", str(small(tmp_path)), "--steps", "1"]
    command += ["--pretrained", str(resolve("checkpoints/emoji")), "--output", str(tmp_path / "out")]
    command += ["--judge", str(resolve("checkpoints/emoji/judge/judge.safetensors")), "--page", str(page)]
    done = forked(ROOT / "scripts" / "tables.py", command, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the original is there") == 2  # once each, by either process
    text = page.read_text(encoding="utf-8")
    heads = {line for line in text.splitlines() if line.startswith("| erased")}
    assert len(heads) == 2 and any("names without a manner" in head for head in heads)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    anchors = {row[0].removeprefix("| "): row[1] for row in rows}
    assert anchors["ship"] in {"house", "book", "pizza", "clock"} and {"added", "half", "one"} <= anchors.keys()
    shown = (tmp_path / "out" / "tables.html").read_text(encoding="utf-8")
    assert shown.count('<img alt="ship"') == 8 and (tmp_path / "out" / "tradeoff.png").is_file()
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("row.json")}
    lost = next(path for path in cells if path.parent.name == "half")
    before = yaml.safe_load(lost.read_text())["results"]
    lost.unlink()
    done = forked(ROOT / "scripts" / "tables.py", command, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path, made in cells.items() if path.stat().st_mtime_ns != made] == [lost]
    assert yaml.safe_load(lost.read_text())["results"] == before
