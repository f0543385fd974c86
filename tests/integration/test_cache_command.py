"""The ``cache`` command: its bar and summary, and one clear error for each kind of bad input."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from support.runs import exit_message

from mace_pl.cli import erase_main
from mace_pl.methods.gram_statistics import load_statistics


def command(toy: Path, output: Path, source: str, *more: str) -> list[str]:
    model = ["--model.pretrained", str(toy), "--model.output", str(output)]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"]
    return ["cache", *model, "--data.sources", json.dumps([source]), *trainer, *more]


def test_the_bar_counts_captions_and_the_summary_says_what_was_summed(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # a terminal: elsewhere there is no bar
    monkeypatch.setenv("NO_COLOR", "1")
    source = tmp_path / "captions.csv"
    source.write_text("id,text\n1,a ship\n2,a dog\n3,a ship\n", "utf-8")
    erase_main(command(toy_pipeline, tmp_path / "prior.safetensors", str(source), "--data.column", "text"))
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "2/2" in printed and "captions/s" in printed
    assert "3 (2 distinct)" in printed and "231 (all)" in printed
    metadata = load_statistics(tmp_path / "prior.safetensors", "file")[1]
    assert metadata["sources"][0]["column"] == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"a ship", "is no JSON"),
        ("a.json", b'{"annotations": [{"id": 1}]}', "annotation 0 has no text 'caption'"),
        ("a.json", b'{"annotations": [{"caption": ""}]}', "annotation 0 has an empty text"),
        ("a.json", b'{"annotations": []}', "no caption at all"),
        ("a.txt", b"", "no caption at all"),
        ("a.txt", "Zürich".encode("latin-1"), "Save it as UTF-8"),
        ("a.parquet", b"PAR1", 'pip install "mace-pl[parquet]"'),
        ("a.csv", b"text\na ship\n", "Name one with --data.column"),
        ("a.zip:captions_val2014.json", None, "holds no captions_val2014.json; it has captions_train2014.json"),
        ("none.json", None, "cannot be read"),
    ],
)
def test_bad_captions_end_in_one_clear_error(
    toy_pipeline: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("captions_train2014.json", "{}")
    text = exit_message(command(toy_pipeline, tmp_path / "prior.safetensors", str(tmp_path / name)), capsys)
    assert "erase.py cache: error: sources" in text and message in text
    assert not (tmp_path / "prior.safetensors").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to")
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "captions.txt"
    source.write_text("a ship\n", "utf-8")
    for output in (Path("/proc/self/prior.safetensors"), source / "prior.safetensors"):
        text = exit_message(command(toy_pipeline, output, str(source)), capsys)
        assert "model.output" in text and "cannot be written" in text
