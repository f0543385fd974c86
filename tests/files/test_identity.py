"""One rule says whether what lies on disk was made from the same inputs, and in which it differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mace_pl.files.identity import differing, hash_files, identity, made_from, note_inputs

INPUTS = {"seed": 7, "levels": (0.1, 0.2), "words": {"person": "face", "ship": "boat"}}


def test_the_order_of_keys_and_a_trip_through_json_do_not_matter() -> None:
    back = json.loads(json.dumps(INPUTS))
    turned = dict(reversed(list(INPUTS.items())))
    assert identity(INPUTS) == identity(back) == identity(turned)
    assert differing(back, INPUTS) == differing(turned, INPUTS) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [({"seed": 8}, ["seed"]), ({"seed": None}, ["seed"]), ({"levels": [0.2, 0.1], "new": 1}, ["levels", "new"])],
)
def test_what_differs_is_named_whichever_side_has_it(change: dict[str, object], names: list[str]) -> None:
    other = INPUTS | change
    assert identity(other) != identity(INPUTS)
    assert differing(other, INPUTS) == names and differing(INPUTS, other) == names
    assert differing({}, INPUTS) == list(INPUTS)


def test_a_folder_says_what_it_was_made_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not made_from(tmp_path, INPUTS, "images")
    note_inputs(tmp_path, INPUTS)
    assert made_from(tmp_path, INPUTS, "images")
    assert capsys.readouterr().out == ""
    assert not made_from(tmp_path, INPUTS | {"seed": 8}, "images")
    assert capsys.readouterr().out.replace("\n", "").endswith(f"{tmp_path}: other seed.")
    (tmp_path / "settings.json").write_text("{ cut")
    assert not made_from(tmp_path, INPUTS)
    assert capsys.readouterr().out == ""


def test_files_are_known_by_name_and_content(tmp_path: Path) -> None:
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    one.write_bytes(b"a")
    two.write_bytes(b"a")
    assert len({hash_files([one]), hash_files([two]), hash_files([one, two]), hash_files([two, one])}) == 4
    before = hash_files([one])
    one.write_bytes(b"b")
    assert hash_files([one]) != before
