"""The notebooks of docs/notebooks run from first cell to last, with few steps, and are saved without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import mace_pl
from mace_pl.files.paths import resolve

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
FEW = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


@pytest.mark.bundled
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/emoji").symlink_to(resolve("checkpoints/emoji").absolute())
    (tmp_path / "docs/notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs/notebooks")  # where Jupyter works
    demo = yaml.safe_load((ROOT / "configs/emoji/erase_ship.yaml").read_text(encoding="utf-8"))
    whole = mace_pl.erase

    def quick(**given: Any) -> Any:
        assert demo == {name: value for name, value in given.items() if name not in ("output_dir", "overwrite")}
        return whole(**given | {"data": {**given["data"], **FEW}, "report_seeds": 1, "kept": given["kept"][:2]})

    monkeypatch.setattr(mace_pl, "erase", quick)  # the same function with fewer steps
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}: {cell['id']}", "exec"), names)
    assert (tmp_path / "checkpoints/erased/notebook/report/summary.md").is_file()
    assert Image.open(tmp_path / "before_after.png").size == (256, 128)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_without_outputs_to_whose_pages_links_lead(notebook: Path) -> None:
    whole = json.loads(notebook.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)  # whose cells have ids
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    for cell in whole["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        for link in [part.split(")")[0] for part in text.split("](")[1:]]:
            assert (notebook.parent / link).is_file(), link
    assert f"notebooks/{notebook.name}" in (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
