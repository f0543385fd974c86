"""The command that makes the tables of the results page: what it reads out of scores, and where it puts it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = ("ten", "characters", "styles", "forty", "ablation", "counts", "tradeoff")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they import each other from their folder."""
    folder, names = str(ROOT / "scripts"), ("runs", "written", "forty", "tables")
    sys.path.insert(0, folder)
    try:
        yield {name: __import__(name) for name in names}
    finally:
        sys.path.remove(folder)
        for name in names:
            sys.modules.pop(name, None)


def scored(acc_e: float, acc_s: float, acc_g: float | None = None) -> dict[str, Any]:
    top = {"acc_e": acc_e, "acc_s": acc_s, "h": 0.5, "h_c": 0.25}
    after = top if acc_g is None else {**top, "acc_g": acc_g}
    before = dict.fromkeys(after, 1.0)
    return {"before": {"top1": before}, "after": {"top1": after}}


def test_rows_say_before_and_after(scripts: dict[str, ModuleType]) -> None:
    written = scripts["written"]
    scores = {"only_a": scored(0.1, 0.9, 0.2), "only_b": scored(0, 0.8, 0.3), "both": scored(0.5, 0.7)}
    scores["only_b"]["after"]["top1"]["h"] = 0.75
    assert written.objects(scores, ["only_a", "only_b"]).splitlines() == [
        "| erased | Acc_e | Acc_s | Acc_g | H_o |",
        "| --- | --- | --- | --- | --- |",
        "| a | 1.000 → 0.100 | 1.000 → 0.900 | 1.000 → 0.200 | 0.500 |",
        "| b | 1.000 → 0.000 | 1.000 → 0.800 | 1.000 → 0.300 | 0.750 |",
        "| mean of 2 |  |  |  | 0.625 |",
        "| both | 1.000 → 0.500 | 1.000 → 0.700 |  | 0.500 |",
    ]
    assert "| three | 1.000 → 0.500 | 1.000 → 0.700 | 0.250 |" in written.crowds(scores, {"both": "three"}, "n")


def test_styles_come_with_their_own_rows(scripts: dict[str, ModuleType]) -> None:
    words, clip = {"twemoji": 0.5, "noto": 0.75}, {"twemoji": 25.0, "noto": 26.0}
    when = {
        "top1": {"acc_e": 0.5, "acc_s": 0.75, "by_word": words},
        "clip_score": {"h_a": 1.0, "by_word": clip},
    }
    rows = [{"word": "noto", "role": "kept"}, {"word": "twemoji", "role": "erased"}]
    table = scripts["written"].styles({"before": when, "after": when, "concepts": rows}).splitlines()
    assert table[2:] == [
        "| twemoji (erased) | 0.500 → 0.500 | 25.00 → 25.00 |",
        "| noto | 0.750 → 0.750 | 26.00 → 26.00 |",
        "| erased; preserved; H_a | 0.500 → 0.500; 0.750 → 0.750 | 1.00 → 1.00 |",
    ]


def test_a_table_replaces_the_one_between_its_marks(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "text.md"
    file.write_text("a\n<!-- x -->\n\n| old |\n\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n", encoding="utf-8")
    for _ in range(2):  # again changes nothing
        scripts["written"].insert(file, {"x": "| new |"})
        text = file.read_text(encoding="utf-8")
        assert text == "a\n<!-- x -->\n\n| new |\n\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n"
    with pytest.raises(ValueError, match="one pair of marks <!-- z -->"):
        scripts["written"].insert(file, {"x": "| newer |", "z": "| lost |"})
    assert "newer" not in file.read_text(encoding="utf-8")


def test_the_page_has_a_place_for_every_table(scripts: dict[str, ModuleType]) -> None:
    text = scripts["written"].inserted(PAGE, {name: f"| {name} |" for name in TABLES})
    assert all(f"\n| {name} |\n" in text for name in TABLES)


@pytest.fixture
def place(scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configurations, in which a program that does no work answers in the place of ``erase.py``."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scripts["runs"], "ERASE", ROOT / "tests" / "scripts" / "stand_in.py")
    return tmp_path


def test_every_run_that_a_table_shows_is_made(scripts: dict[str, ModuleType], place: Path) -> None:
    """The stand-in fuses and scores only what was made before."""
    page = place / "results.md"
    page.write_text(PAGE, encoding="utf-8")
    scripts["tables"].main(page=page)
    text = page.read_text(encoding="utf-8")
    tables = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", text, re.DOTALL))
    rows = {name: tables[name].strip().splitlines()[2:] for name in TABLES}
    assert all("1.000 → 0.100" in row for name in TABLES if name != "styles" for row in rows[name] if "mean" not in row)
    assert len(rows["ten"]) == len(scripts["tables"].TEN) + 2 and len(rows["counts"]) == len(scripts["forty"].NUMBERS)
    assert (place / "checkpoints/scores/tradeoff.png").is_file()
    ablation = json.loads((place / "checkpoints/scores/ablation.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in ablation] == list(scripts["forty"].STAGES.values())
    before = {file: file.read_bytes() for file in place.rglob("words.json")}
    scripts["tables"].main(page=page)  # what is there is kept
    assert {file: file.read_bytes() for file in place.rglob("words.json")} == before


def test_the_weight_of_the_domain_follows_the_number(scripts: dict[str, ModuleType], place: Path) -> None:
    config = place / "four.yaml"
    concepts = [{"target": name, "anchor": "house"} for name in "abcd"]
    model = {"refine": {"domain": 3.0}, "fuse": {"domain": 20.0}}
    config.write_text(yaml.safe_dump({"model": model, "data": {"concepts": concepts}}))
    run = scripts["runs"].some(str(config), "one", concepts[:1])
    words = json.loads((run / "words.json").read_text(encoding="utf-8"))
    assert words[-2:] == ["--model.refine.domain=1.5", "--model.fuse.domain=10"]
    assert json.loads(words[words.index("--data.concepts") + 1]) == concepts[:1]
