"""The command that attacks edits of the bundled model: cells that are made once, and what its tables say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from support.finished import finished_run

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_tensors
from mace_pl.files.paths import resolve

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 128  # of the bundled model's text
NAMES = ("compare_methods", "compared", "compared_edits", "compared_images", "compared_page", "written", "runs")
NAMES += ("hardening_edits", "hardening_cells", "hardening_page", "hardening")


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


def small(place: Path) -> dict[str, Any]:
    """Two edits of a ship, which are there, and two attacks on them over three names."""
    base = resolve("checkpoints/emoji")
    (place / "runs").mkdir()
    for edit in ("mace", "hardened"):
        finished_run(place / "runs" / f"ship_{edit}", base)
        sums = {name: torch.eye(WIDTH, dtype=torch.float64) for name in ("F", "G", "F_all", "pairs")}
        write_tensors(place / "runs" / f"ship_{edit}" / "statistics" / "ship.safetensors", sums, "concept", {})
    (place / "runs" / "ship_mace.made.json").write_text('{"seconds": 12.5}')
    words = {"names": ["ship", "dog", "frog"], "keep": []}
    manners = {"names": ["Velmora", "Quistel"], "keep": [], "judged": "styles", "templates": ["a cat by {}"]}
    (place / "sets.yaml").write_text(yaml.safe_dump({"vocabularies": {"all": words, "manners": manners}}))
    given = {"subjects": ["ship"], "edits": ["mace", "hardened"], "attacks": ["free_tokens", "noise"], "trials": 2}
    given |= {"seeds": 1, "steps": 1, "strengths": {"token_steps": 1, "noise": [1.0]}, "pretrained": str(base)}
    given |= {"judge": str(base / "judge" / "judge.safetensors"), "vocabularies": place / "sets.yaml"}
    return given | {"runs": place / "runs", "output": place / "out"}


@pytest.mark.bundled
def test_cells_are_made_once_and_tables_hold_all_that_is_there(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, given, out = scripts["hardening"].main, small(tmp_path), tmp_path / "out"
    main(**given)
    found = json.loads((out / "hardening.json").read_text())
    rows = {row["edit"]: row for row in found["rows"]}
    assert list(rows) == ["mace", "hardened"] and rows["mace"]["seconds"] == 12.5
    for row in rows.values():
        own = row["targets"]["ship"]
        assert list(own) == ["free_tokens", "noise", "plain"]
        assert row["reach"]["ship"]["size"] > 0 and len(row["reach"]["ship"]["near"]) == 2
        for cell in own.values():
            assert {cell[judge]["n"] for judge in ("ConvolutionalJudge", "clip")} == {2}
        assert row["preserved"]["all"]["after"]["clip"]["n"] == 2  # dog and frog
    assert rows["mace"]["preserved"] == rows["hardened"]["preserved"]  # equal edits
    table, page = ((out / f"hardening.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    assert table.count("| ship | ship | mace |") == 2 and "(×1.00)" in table
    assert page.count("data:image/png;base64") == 2 * 2 * 2 and "ship: free tokens" in page
    made = {path: path.stat().st_mtime_ns for path in (out / "ship").rglob("*.*")}
    lost = out / "ship" / "mace" / "ship" / "noise" / "1.json"
    first = json.loads(lost.read_text())
    lost.unlink()
    main(**given)
    again = {path for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert again == {lost, lost.with_suffix(".png")}
    assert {**json.loads(lost.read_text()), "seconds": 0} == {**first, "seconds": 0}
    with pytest.raises(UserError, match="was made with steps 1"):
        main(**given | {"steps": 2})
    capsys.readouterr()


def test_what_is_unknown_is_refused(scripts: dict[str, ModuleType]) -> None:
    with pytest.raises(UserError, match=r"edits=\['mice'\]: 'mice' is unknown. Choose from mace"):
        scripts["hardening"].some(["mace"], ["mice"], "edits")
