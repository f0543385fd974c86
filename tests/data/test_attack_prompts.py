"""Names of attacks, from a list or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.errors import UserError


def test_names_are_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ship\nhouse \n", encoding="utf-8")
    for names in (["ship", "house"], str(tmp_path / "names.txt")):
        assert AttackPrompts(names, ["ship"]).names == ["ship", "house"]
    with pytest.raises(UserError, match=r"^data\.names=\S+nosuch\.txt cannot be read"):
        AttackPrompts(str(tmp_path / "nosuch.txt"), ["ship"])
    with pytest.raises(UserError, match="'cat'] are not in data.names"):
        AttackPrompts(str(tmp_path / "names.txt"), ["cat"])
