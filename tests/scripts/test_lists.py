"""The command that holds the defaults against what a search finds: a small list, and what its table says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mace_pl.files.paths import resolve
from mace_pl.run import Run

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("compared", "runs", "written", "lists")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it imports others from its folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield __import__("lists")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        for name in NAMES:
            sys.modules.pop(name, None)


def test_the_lists_are_of_one_to_forty_names_that_the_judge_knows() -> None:
    lists = yaml.safe_load((ROOT / "configs/compare/lists.yaml").read_text())
    known = (ROOT / "configs/emoji/names.txt").read_text().split("\n")
    assert [len(set(names)) for names in lists.values()] == [1, 5, 10, 20, 40]
    assert {name for names in lists.values() for name in names} <= set(known)


@pytest.mark.bundled
def test_a_list_is_fitted_searched_and_confirmed_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = resolve("checkpoints/emoji")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists.yaml").write_text("few: [ship]\n")
    (tmp_path / "page.md").write_text("Before\n\n<!-- lists -->\n<!-- /lists -->\n")
    given = {"lists": tmp_path / "lists.yaml", "trials": 1, "steps": 2, "document": tmp_path / "page.md"}
    given |= {"pretrained": str(base), "clip": str(base / "clip"), "judge": str(base / "judge/judge.safetensors")}
    given |= {"more": ["--data.steps_per_concept", "1", "--data.images_per_concept", "1", "--data.anchors", "[lamp]"]}
    given["more"] += ["--model.domain_names", "[dog, cat]"]
    script.main(**given)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "checkpoints/erased/list_few.study/tuning.json").read_text())
    assert Run.load("checkpoints/erased/list_few").targets == ["ship"] and found["trials"]["scored"] == 1
    hs = [f"{one['h']:.3f}" for one in found["figures"].values()]
    assert f"| few | 1 | 1 | {' | '.join(hs)} | +0.0 |" in said  # one trial: what was found is the run as it was
    assert said.split(" \n")[0] in (tmp_path / "page.md").read_text()
    seconds = (tmp_path / "checkpoints/scores/lists/few.json").read_text()
    script.main(**given)
    assert (tmp_path / "checkpoints/scores/lists/few.json").read_text() == seconds
