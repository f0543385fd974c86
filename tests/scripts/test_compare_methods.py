"""The comparison of methods: its sets and methods, equal trials, cells that are made once, and what the table says."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("written", "compared", "compared_edits", "compared_images", "compared_page", "compare_methods")
COMPARE = ROOT / "configs" / "compare"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they import each other from their folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        for name in NAMES:
            sys.modules.pop(name, None)


def test_the_sets_are_those_of_the_protocol(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    vocabularies, sets = scripts["compared"].read_sets(COMPARE / "sets.yaml")
    alone = [one.concepts[0]["target"] for one in sets.values() if one.vocabulary == "ten" and len(one.concepts) == 1]
    assert alone == list(vocabularies["ten"].names) and len(alone) == 10
    sizes = {name: len(sets[name].concepts) for name in ("animals", "forty", "manner", "manners")}
    assert sizes == {"animals": 5, "forty": 40, "manner": 1, "manners": 5}
    for one in sets.values():  # an anchor that is erased too is none
        targets = {concept["target"] for concept in one.concepts}
        anchors = {concept["anchor"] for concept in one.concepts if "anchor" in concept}
        assert not targets & anchors and (anchors or one.anchors)
        vocabulary = vocabularies[one.vocabulary]
        assert targets <= set(vocabulary.keep)
        assert {*anchors, *one.anchors} <= {*vocabulary.names, *vocabulary.others}


def test_every_method_tries_what_its_class_takes(scripts: dict[str, ModuleType]) -> None:
    methods = scripts["compared"].read_methods(COMPARE / "methods.yaml")
    assert len(methods) == 9
    for method in methods.values():
        assert method.trial(0, 1) == method.published  # the published settings are a trial
        for number in range(1, 20):
            settings = method.trial(number, 1)
            assert settings == method.trial(number, 1) and settings.keys() >= method.space.keys()
            method.made(settings)  # refuses what is out of range
            for key, spec in method.space.items():
                inside = settings[key] in spec["of"] if isinstance(spec, dict) else spec[0] <= settings[key] <= spec[1]
                assert inside, (method.name, key, settings[key])
        assert method.trial(1, 1) != method.trial(2, 1)


def small(place: Path) -> dict[str, Any]:
    """Files of one set and of three methods, one of which is refused."""
    vocabulary = {"names": ["ship", "dog", "frog"], "keep": ["ship", "dog", "frog", "house"], "seeds": 1}
    vocabulary |= {"synonyms": {"ship": ["boat"]}, "level_seeds": 1, "trial_seeds": 1}
    vocabulary["descriptions"] = str(place / "descriptions.yaml")
    (place / "descriptions.yaml").write_text("ship: [it sails on the sea]\ndog: [it barks]\n")
    sets = {"vocabularies": {"three": vocabulary}}
    concept = {"target": "ship", "anchor": "house", "kind": "object"}
    sets["sets"] = {"ship": {"vocabulary": "three", "concepts": [concept]}}
    methods = {
        "UCE": {"published": {"refine.identity": 0.5, "refine.domain": 1}, "space": {"refine.domain": [0.1, 10.0]}},
        "CURE": {"published": {"method.alpha": 0.5, "refine.domain": 1}, "space": {"method.alpha": [2.0, 5.0]}},
    }
    methods = {name: {"class_path": f"mace_pl.methods.{name}", **given} for name, given in methods.items()}
    (place / "sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    (place / "methods.yaml").write_text(yaml.safe_dump(methods, sort_keys=False))
    given = {"pretrained": str(resolve("checkpoints/emoji")), "judge": None, "steps": 1, "trials": 2}
    return given | {"targets": place / "sets.yaml", "candidates": place / "methods.yaml", "output": place / "out"}


@pytest.mark.bundled
def test_a_table_and_a_page_come_out_and_what_is_done_is_kept(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, given = scripts["compare_methods"].main, small(tmp_path)
    main(**given)
    out = tmp_path / "out"
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["kind"]) for row in rows] == [
        (name, kind) for name in ("UCE", "CURE") for kind in ("published", "best of 2")
    ]
    uce, _, refused, cure = rows
    assert "alpha=0.5 must be at least 1" in refused["note"] and refused["h_c"] == ""
    assert 0 <= float(uce["acc_e"]) <= 1 and 0 <= float(cure["descriptions empty"] or 0) <= 1
    assert float(uce["seconds"]) > 0 and float(uce["trials_took"] or 0) == 0
    page, table = ((out / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    solved = [path for path in (out / "cells").rglob("reported_*.json") if "results" in path.read_text()]
    assert len(solved) in (2, 3)  # of UCE the published settings, and the second trial's where it is better
    assert page.count('<img alt="ship"') == 1 + len(solved) and "refused" in page
    assert "best of 2" in table and "| CURE | published | 0 of 1 | 1 |" in table
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    lost = next(path for path in cells if path.parent.name.lower().startswith("uce") and path.name == "reported_0.json")
    first = lost.read_text()
    lost.unlink()
    text = (tmp_path / "methods.yaml").read_text()
    (tmp_path / "methods.yaml").write_text(text.replace("- 2.0\n", "- 3.0\n"))  # another space for CURE
    main(**given)
    again = {path for path, made in cells.items() if path.stat().st_mtime_ns != made}
    assert {path.name for path in again if path.parent == lost.parent} == {"reported_0.json"}
    assert {path.name for path in again if path.parent != lost.parent} == {"trial_1.json", "reported_1.json"}
    costs = ("seconds", "peak_mb", "took")
    one, other = (
        {k: v for k, v in yaml.safe_load(text).items() if k not in costs} for text in (first, lost.read_text())
    )
    assert one == other
    with pytest.raises(UserError, match="was made with steps 1"):
        main(**given | {"steps": 2})
    capsys.readouterr()


def test_names_that_are_unknown_are_refused(scripts: dict[str, ModuleType]) -> None:
    with pytest.raises(UserError, match=r"methods=\['UCS'\]: UCS is unknown. Choose from UCE"):
        scripts["compared"].chosen({"UCE": 1}, ["UCS"], "methods")


def test_an_edit_that_leaves_the_target_is_marked(scripts: dict[str, ModuleType]) -> None:
    def row(after: float) -> dict[str, Any]:
        tops = {"before": {"top1": {"acc_e": 0.9}}, "after": {"top1": {"acc_e": after}}}
        return {"results": {"clip": tops | {"fails": []}}}

    verdict = scripts["compared_page"].verdict
    assert (verdict(row(0.5)), verdict(row(0.4))) == ("✗ the target stays", "")
