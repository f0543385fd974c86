"""Prompt files as other projects publish them and spreadsheets write them: every row by its own seed, or refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mace_pl.cli import erase_main
from mace_pl.data.prompts import Prompts
from mace_pl.errors import UserError

PUBLISHED = ",case_number,type,prompt,evaluation_seed\n0,11,erased,a ship,1\n1,12,erased,a ship,2\n2,13,kept,a cat,7\n"


def write(folder: Path, content: str, name: str = "a.csv", encoding: str = "utf-8") -> str:
    (folder / name).write_bytes(content.encode(encoding))
    return str(folder / name)


def rows_of(data: Prompts) -> list[tuple[str, int]]:
    return [(row["prompt"], row["seed"]) for row in data.rows]


def test_published_seeds_are_used_and_other_columns_kept(tmp_path: Path) -> None:
    data = Prompts(write(tmp_path, PUBLISHED))
    assert rows_of(data) == [("a ship", 1), ("a ship", 2), ("a cat", 7)]
    assert data.rows[2]["columns"] == {"": "2", "case_number": "13", "type": "kept"}


@pytest.mark.parametrize("name", ["a.CSV", "a.csv.gz", "a.csv"])
def test_a_table_is_read_whatever_its_name_and_mark(tmp_path: Path, name: str) -> None:
    raw = ("\ufeff" + PUBLISHED.replace("prompt,evaluation_seed", "prompt, Evaluation_Seed ")).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [seed for _, seed in rows_of(Prompts(str(tmp_path / name)))] == [1, 2, 7]


def test_json_lines_and_parquet_bring_seeds_too(tmp_path: Path) -> None:
    rows = [{"prompt": "a ship", "seed": 4, "guidance": 2, "n": [1]}, {"prompt": "a cat", "seed": 5.0, "guidance": 3}]
    data = Prompts(write(tmp_path, "\n".join(json.dumps(row) for row in rows), "a.jsonl"))
    assert rows_of(data) == [("a ship", 4), ("a cat", 5)]
    assert [row["guidance"] for row in data.rows] == [2.0, 3.0] and data.rows[0]["columns"] == {"n": [1]}
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"prompt": ["a ship"], "sd_seed": [2351616], "image": [b"\x89PNG"], "hard": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = Prompts(str(tmp_path / "a.parquet"))
    assert rows_of(data) == [("a ship", 2351616)] and data.rows[0]["columns"] == {"hard": 1}


@pytest.mark.parametrize(
    ("head", "used"),
    [("seed,evaluation_seed,sd_seed", 1), ("sd_seed,evaluation_seed,x", 2), ("x,y,sd_seed", 3), ("y,Seed,x", 2)],
)
def test_the_first_known_column_is_the_seed(tmp_path: Path, head: str, used: int) -> None:
    assert rows_of(Prompts(write(tmp_path, f"prompt,{head}\na ship,1,2,3\n"))) == [("a ship", used)]


def test_a_column_can_be_named_or_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, "prompt,my_seed,seed,cfg\na ship,8,9,3\n")
    with pytest.raises(ValueError, match=r"has a column 'cfg', which may be the guidance\. .*--data\.guidance_column"):
        Prompts(file)
    data = Prompts(file, seed_column="my_seed", guidance_column="cfg")
    assert data.rows == [{"prompt": "a ship", "seed": 8, "guidance": 3.0, "columns": {"seed": "9"}}]
    data = Prompts(file, seed_column=None, guidance_column=None, seeds=2)
    assert rows_of(data) == [("a ship", 0), ("a ship", 1)]
    assert data.rows[0]["columns"] == {"my_seed": "8", "seed": "9", "cfg": "3"}


def test_a_prompt_that_comes_again_gets_other_seeds(tmp_path: Path) -> None:
    expected = [("a ship", 0), ("a ship", 1), ("a cat", 0), ("a cat", 1), ("a ship", 2), ("a ship", 3)]
    assert rows_of(Prompts(write(tmp_path, "prompt\na ship\na cat\na ship\n"), seeds=2)) == expected
    assert rows_of(Prompts(write(tmp_path, "a ship\na cat\na ship\n", "a.txt"), seeds=2)) == expected
    again = Prompts(names=["ship", "cat", "ship"], templates=["a {}"], seeds=2)
    assert rows_of(again) == expected


def test_equal_rows_are_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    head = "prompt,seed,guidance\n"
    Prompts(write(tmp_path, head + "a ship,1,3\na ship,1,4\na ship,2,3\na cat,1,3\n"))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="3 of 5 rows generate .* as 'a ship' with seed 1, which is there 3 times"):
        Prompts(write(tmp_path, head + "a ship,1,3\na ship,1,3.0\na cat,1,3\na ship,01,3\na cat,1,3\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt;seed\na ship;1\n", "has semicolons between its fields"),
        ("prompt\tseed\na ship\t1\n", "has tabs between its fields"),
        (
            "prompt,random_seed\na ship,1\n",
            "has a column 'random_seed', which may be the seed. Name it",
        ),
        ("prompt,seed\na ship,1.0\na ship,\n", "line 3 has seed ''"),
        ("prompt,seed\na ship,1.5\n", "line 2 has seed '1.5'"),
        ("prompt,seed\na ship,1e3\n", "line 2 has seed '1e3'"),
        ("prompt,seed\na ship,9223372036854775808\n", "must be between 0 and"),
        ("prompt,guidance\na ship,\n", "line 2 has guidance ''"),
        ("prompt,guidance\na ship,-1\n", "line 2 has guidance '-1'"),
        ("prompt,seed,seed\na ship,1,2\n", "has two columns 'seed'"),
        ("prompt,seed\na ship, on the sea,1\n", "line 2 has other fields"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Prompts(write(tmp_path, content))
    assert "data.file" in str(caught.value) and "a.csv" in str(caught.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "cp1252"):
        with pytest.raises(ValueError, match=r"data\.file: .*a\.csv: is not UTF-8"):
            Prompts(write(tmp_path, "prompt,seed\nBeyoncé,1\n", encoding=encoding))
    with pytest.raises(ValueError, match=r"data\.seed_column=other: .*a\.csv has no such column, only prompt, seed"):
        Prompts(write(tmp_path, "prompt,seed\na ship,1\n"), seed_column="other")


def test_rows_are_generated_by_their_own_seed_and_guidance(toy_pipeline: Path, tmp_path: Path) -> None:
    rows = ["a photo of a ship,1,2", "a photo of a ship,2,9", "a photo of a dog,1,9", "a photo of a dog,2,2"]
    file = write(tmp_path, "prompt,evaluation_seed,evaluation_guidance\n" + "\n".join(rows) + "\n")
    options = ["predict", "--model.pretrained", str(toy_pipeline), "--model.steps", "2", "--data.file", file]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    erase_main([*options, "--model.output", str(tmp_path / "own")])
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())["rows"]
    assert [(row["seed"], row["guidance"]) for row in manifest] == [(1, 2.0), (2, 9.0), (1, 9.0), (2, 2.0)]
    plain = [*options, "--data.guidance_column", "null", "--model.guidance", "9"]
    erase_main([*plain, "--model.output", str(tmp_path / "nine")])
    other = json.loads((tmp_path / "nine" / "manifest.json").read_text())["rows"]
    own, nine = (
        [np.asarray(Image.open(tmp_path / name / row["file"]), dtype=int) for row in found]
        for name, found in (("own", manifest), ("nine", other))
    )
    same = [np.abs(a - b).max() <= 1 for a, b in zip(own, nine, strict=True)]
    assert same == [False, True, True, False]
    with Image.open(tmp_path / "own" / manifest[0]["file"]) as image:
        assert json.loads(image.text["settings"])["guidance"] == 2.0


def test_a_row_without_the_seed_of_others_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a ship", "seed": 3}, {"prompt": "a cat"}]
    for number, lines in enumerate((rows, rows[::-1])):
        file = write(tmp_path, "\n".join(json.dumps(row) for row in lines), "a.jsonl")
        with pytest.raises(UserError, match=f"line 2 has {('no', 'a')[number]} seed, and others have"):
            Prompts(file)


def test_columns_that_decide_images_elsewhere_are_named(tmp_path: Path) -> None:
    file = write(
        tmp_path, "prompt,sd_seed,negative_prompt,sd_image_width,num_inference_steps,hard\na ship,1,blurry,8,9,1\n"
    )
    with pytest.warns(
        UserWarning, match="negative_prompt, num_inference_steps, sd_image_width are kept, but decide"
    ) as said:
        Prompts(file)
    assert "by --model.negative, --model.steps, --model.width" in str(said[0].message)
