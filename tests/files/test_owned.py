"""Nothing is removed that the project did not write, whatever a target is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import checksums, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.errors import UserError
from mace_pl.files.artifacts import slug, write_json, written_aside

ROOT = Path(__file__).parents[2]
FEW = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}
ODD = [".", "..", "...", "../..", "/", "~", "C++", "C--", "c/d", "c\\d", "🚢", "🐱", "मीरा", "मैरी", "con", "NUL.txt"]
ODD += [
    "a_b",
    "a b",
    "-",
    "name",
    "x" * 300,
    "x" * 301,
    "é" * 200,
    "ship.",
    ".ship",
    "_",
    "[sks] ship",
    "<ship>",
    "ship",
]


def test_names_have_file_names_of_their_own() -> None:
    files = [slug(name) for name in ODD]
    assert len({file.casefold() for file in files}) == len(ODD)
    for file in files:
        assert file == Path(file).name and not file.startswith(".") and not file.endswith(".")
        assert len(file.encode()) <= 100 and file.split(".")[0].lower() not in ("con", "nul")
    assert (slug("ship"), slug("van gogh"), slug("R2-D2"), slug("Beyoncé")) == ("ship", "van_gogh", "R2-D2", "Beyoncé")


def test_names_are_plain_where_file_names_cannot_hold_their_letters(tmp_path: Path) -> None:
    names = ["ship", "मैरी", "मीरा", "van gogh 🚢"]
    code = f"from mace_pl.files.artifacts import slug\nfor n in {ascii(names)}: open(slug(n), 'x'); print(slug(n))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=plain, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    files = done.stdout.split()
    assert len(set(files)) == len(names) and all(file.isascii() for file in files) and files[0] == "ship"


def test_a_folder_with_a_file_of_others_is_not_replaced(tmp_path: Path) -> None:
    for _ in range(2):  # what was written here is replaced
        with written_aside(tmp_path / "run") as aside:
            (aside / "deep").mkdir(parents=True)
            write_json(aside / "deep" / "a.json", {})
    (tmp_path / "run" / "deep" / "mine.txt").write_text("keep")
    before = checksums(tmp_path)
    refused = pytest.raises(ValueError, match=r"output: .*run holds deep/mine.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run") as aside:
        aside.mkdir()
    with pytest.raises(ValueError, match="is a folder, where a file would be written"):
        write_json(tmp_path / "run", {})
    assert checksums(tmp_path) == before


def test_a_folder_inside_a_run_is_replaced_unless_it_holds_a_file_of_others(tmp_path: Path) -> None:
    with written_aside(tmp_path / "run") as aside:
        (aside / "lora").mkdir(parents=True)
        (aside / "lora" / "README.md").write_text("a card")
    for text in ("another", "a third"):
        with written_aside(tmp_path / "run" / "lora") as aside:
            aside.mkdir()
            (aside / "README.md").write_text(text)
        assert (tmp_path / "run" / "lora" / "README.md").read_text() == text
    (tmp_path / "run" / "lora" / "mine.txt").write_text("keep")
    refused = pytest.raises(ValueError, match=r"lora holds mine\.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run" / "lora") as aside:
        aside.mkdir()


def test_a_damaged_record_protects_all_files(tmp_path: Path) -> None:
    with written_aside(tmp_path / "run") as aside:
        aside.mkdir()
        (aside / "a.txt").write_text("a")
    (tmp_path / "run" / ".written.json").write_text("{")
    refused = pytest.raises(ValueError, match=r"run holds a\.txt, which this project did not write")
    with refused, written_aside(tmp_path / "run") as aside:
        aside.mkdir()


def test_a_run_replaces_runs_alone(tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    concepts = [{"target": ".", "anchor": "sky"}]
    mine = tmp_path / "pictures" / "cat" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    args = config(tmp_path, toy_pipeline, "run", concepts, **FEW)
    erase_main(args)
    erase_main([*args, "--overwrite", "true"])
    assert mine.read_text() == "keep"
    (tmp_path / "run" / "report" / "notes.md").write_text("mine")
    before = checksums(tmp_path)
    message = exit_message([*args, "--overwrite", "true", "--data.image_steps", "2"], capsys)
    assert "output_dir" in message and "report/notes.md" in message
    assert checksums(tmp_path) == before


def test_images_of_others_are_not_overwritten(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = tmp_path / "pictures" / "ship" / "images"
    generated.mkdir(parents=True)
    (generated / "mine.png").write_bytes(b"mine")
    (generated.parent / "settings.json").write_text(json.dumps({"target": "ship"}))
    message = exit_message(config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}], **FEW), capsys)
    assert "data.pictures" in message and "images/mine.png" in message
    assert (generated / "mine.png").read_bytes() == b"mine" and not (tmp_path / "run").exists()


def test_what_another_command_wrote_meanwhile_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()  # an empty folder is as good as none
    refused = pytest.raises(UserError, match=r"output_dir: another command has written .*run meanwhile")
    with refused as said, written_aside(tmp_path / "run", "output_dir", overwrite=False) as late:
        late.mkdir()
        (late / "own.txt").write_text("late")
        with written_aside(tmp_path / "run", "output_dir", overwrite=False) as early:
            early.mkdir()
            (early / "own.txt").write_text("early")
    assert (tmp_path / "run" / "own.txt").read_text() == "early"
    (left,) = tmp_path.glob("run-*")
    assert (left / "own.txt").read_text() == "late" and str(left) in str(said.value)
    refused = pytest.raises(UserError, match="another command has written")
    with refused, written_aside(tmp_path / "a.safetensors", overwrite=False) as late:
        late.write_text("late")
        (tmp_path / "a.safetensors").write_text("early")
    assert (tmp_path / "a.safetensors").read_text() == "early"
    assert [file.read_text() for file in tmp_path.glob("a-*.safetensors")] == ["late"]


def test_the_later_of_two_runs_replaces_nothing(
    tmp_path: Path, toy_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meanwhile = [{"class_path": "support.runs.Meanwhile", "init_args": {"folder": str(tmp_path / "run")}}]
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": "sky"}], **FEW)
    args += ["--report_seeds", "0", "--save_pipeline", "false", "--trainer.callbacks", json.dumps(meanwhile)]
    message = exit_message(args, capsys)
    (left,) = (path for path in tmp_path.glob("run-*"))
    assert "another command has written" in message and left.name in message
    assert (tmp_path / "run" / "edit.safetensors").read_bytes() == b"of another run"
    assert (left / "edit.safetensors").is_file()
