"""Texts, YAML and tables as spreadsheets, editors and other locales write them."""

import json
from pathlib import Path

import pytest

from mace_pl.files.tables import read_table, read_text, read_yaml

ROWS = "target,anchor\r\nBeyoncé,woman\r\n"


@pytest.mark.parametrize("content", [ROWS.encode(), ROWS.encode("utf-8-sig"), b"\r\n" + ROWS.encode() + b"\r\n"])
def test_a_byte_order_mark_and_empty_lines_are_no_part_of_a_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    table = read_table(tmp_path / "a.csv", "data.x")
    assert table.columns == ["target", "anchor"]
    assert [row for _, row in table.rows] == [{"target": "Beyoncé", "anchor": "woman"}]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,"x\ny"\n\n2,z\n')
    assert [(line, row["a"]) for line, row in read_table(tmp_path / "a.csv", "x").rows] == [(3, "1"), (5, "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.encode("cp1252"), "is not UTF-8 (byte 0xe9 in line 2). Save it as UTF-8"),
        (ROWS.encode("utf-16"), "looks like UTF-16"),
        (ROWS.encode("utf-16-le"), "looks like UTF-16"),
        (ROWS.replace(",", ";").encode(), "has semicolons between its fields"),
        (ROWS.replace(",", "\t").encode(), "has tabs between its fields"),
        (b"a,a\n1,2\n", "names the column 'a' twice"),
        (b"a,b\n1\n", "line 2 has other fields than the first line (1, not 2)"),
        (b"a,b\n1,2,3\n", "line 2 has other fields than the first line (3, not 2)"),
        (b'a\n"x" y\n', "is no CSV"),
        (b"sep=,\na,b\n1,2\n", "begins with 'sep=', for Excel. Remove that line"),
        (None, "cannot be read"),
    ],
)
def test_other_tables_are_refused_by_setting_and_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_table(tmp_path / "a.csv", "data.x")
    assert str(error.value).startswith(f"data.x: {tmp_path / 'a.csv'}") and message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a:\n\tb: 1\n", "Indent with blanks"),
        (b"a: [1\n", "is no YAML (line 2"),
        (b"model: {a: 1}\ndata: 1\nmodel: {b: 2}\n", "(line 3, column 1: the key 'model' is there twice"),
        (b"- target: ship\n  anchor: sky\n  target: dog\n", "(line 3, column 3: the key 'target' is there twice"),
        ("a: é".encode("cp1252"), "is not UTF-8"),
        ("a: b".encode("utf-16"), "looks like UTF-16"),
    ],
)
def test_other_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_yaml(tmp_path / "a.yaml", "config")
    assert str(error.value).startswith(f"config: {tmp_path / 'a.yaml'}") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_is_read_as_values_or_as_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf[1984, no, 007, 1_0, 2020-01-01, 1.50, .inf, =, ~, null, 'null']")
    read = read_yaml(tmp_path / "a.yaml", "x", texts=True)
    assert read == ["1984", "no", "007", "1_0", "2020-01-01", "1.50", ".inf", "=", None, None, "null"]
    (tmp_path / "a.yaml").write_text("a: &b {c: 1}\nd: {<<: *b}\n")
    assert read_yaml(tmp_path / "a.yaml", "x", texts=True) == {"a": {"c": "1"}, "d": {"c": "1"}}
    assert read_yaml(tmp_path / "a.yaml", "x") == {"a": {"c": 1}, "d": {"c": 1}}


@pytest.mark.parametrize("number", ["3e-05", "1e-4", "-2E+3", "+1e5", "7e0", "1.5e-05", "0.25"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.yaml").write_text(f"lr: {number}\n")
    assert read_yaml(tmp_path / "a.yaml", "config") == {"lr": float(number)}


@pytest.mark.parametrize("word", ["e5", "1e", "1e5x", "1 e5"])
def test_a_word_with_an_e_stays_a_word(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.yaml").write_text(f"name: {word}\n")
    assert read_yaml(tmp_path / "a.yaml", "config") == {"name": word}


def test_what_json_writes_is_read_as_it_was(tmp_path: Path) -> None:
    written = {"lr": 3e-05, "small": 1e-300, "large": 1e22, "text": "3e-05"}
    (tmp_path / "a.json").write_text(json.dumps(written))
    assert read_yaml(tmp_path / "a.json", "output") == written


def test_text_is_read_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffBeyoncé\r\n".encode())
    assert read_text(tmp_path / "a.txt", "x") == "Beyoncé\r\n"


def test_keys_that_come_from_another_mapping_are_no_equal_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &base {x: 1, y: 2}\nb: {<<: *base, x: 3}\nc: *base\n")
    found = read_yaml(tmp_path / "a.yaml", "config")
    assert found == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}
    (tmp_path / "a.yaml").write_text("")
    assert read_yaml(tmp_path / "a.yaml", "config") is None
