"""The command line of training: what a user can mend is one line, and a fault of the program keeps its traceback."""

from pathlib import Path

import pytest

from mace_pl.train_cli import train_main

JUDGE = ["fit", "--config", "configs/train/emoji_judge.yaml"]


def message(args: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        train_main(args)
    assert isinstance(stop.value.code, str)
    return stop.value.code


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.imags", "3"], ("imags", "SpriteImages", "nearest that exists is images")),
        (["--model.learning_rate", "fast"], ("model.learning_rate",)),
        (["--data.folder", "/nowhere"], ("/nowhere",)),
        (["--model.smoothing", "2"], ("smoothing",)),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(args: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    said = message([*JUDGE, "--model.output_dir", str(tmp_path), *args])
    assert said.startswith("train.py fit: error: ") and "\n" not in said
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir())


def test_there_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_main(["--help"])
    shown = capsys.readouterr().out
    assert "fit" in shown and "predict" not in shown and "validate" not in shown
