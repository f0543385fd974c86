"""Statistics of shards and domains add up; what overlaps or does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import exit_message
from support.tolerances import FLOAT64_SUMS, close

from mace_pl.cli import erase_main
from mace_pl.files.artifacts import read_tensors, write_tensors
from mace_pl.methods.gram_statistics import load_statistics, weighted_statistics
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.modules.caption_statistics import load_text_parts
from mace_pl.modules.concept_erasure import ConceptErasure

CAPTIONS = [["a photo of a ship", "a dog", "a dog"], ["art", "a house in the sky", "a dog"], ["a cat", "a bird"]]


@pytest.fixture(scope="module")
def shards(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Statistics of three files of captions, and of all of them, by the command itself."""
    folder = tmp_path_factory.mktemp("shards")
    for i, captions in enumerate([*CAPTIONS, sum(CAPTIONS, [])]):
        (folder / f"{i}.txt").write_text("\n".join(captions), "utf-8")
        model = ["--model.pretrained", str(toy_pipeline), "--model.output", str(folder / f"{i}.safetensors")]
        trainer = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.precision", "64-true"]
        erase_main(["cache", *model, "--data.sources", json.dumps([str(folder / f"{i}.txt")]), *trainer])
    return [str(folder / f"{i}.safetensors") for i in range(4)]


def merge(files: list[str], output: Path, *more: str) -> tuple[torch.Tensor, dict[str, Any]]:
    erase_main(["merge", *files, "--output", str(output), *more])
    return load_statistics(output, "files")


def test_shards_add_up_to_the_whole(shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gram, metadata = merge(shards[:3], tmp_path / "sum.safetensors")
    whole, expected = load_statistics(Path(shards[3]), "files")
    close(gram, whole, FLOAT64_SUMS)
    for key in ("encoder", "captions", "tokens", "precision", "token_choice"):
        assert metadata[key] == expected[key]
    assert metadata["distinct_captions"] == 7  # of each file: "a dog" is in two of them
    assert [Path(s["source"]).name for s in metadata["sources"]] == ["0.txt", "1.txt", "2.txt"]
    assert [part["file"] for part in metadata["merged"]] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert "Written to" in capsys.readouterr().out


def test_weights(shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gram, metadata = merge(shards[:2], tmp_path / "sum.safetensors", "--weights", "[2, 0.5]")
    first, second = (load_statistics(Path(file), "files")[0] for file in shards[:2])
    close(gram, 2 * first + 0.5 * second, FLOAT64_SUMS)
    assert [source["weight"] for source in metadata["sources"]] == [2, 0.5]
    again, metadata = merge(
        [str(tmp_path / "sum.safetensors"), shards[2]], tmp_path / "3.safetensors", "--weights=[3,1]"
    )
    assert [source["weight"] for source in metadata["sources"]] == [6, 1.5, 1]


def test_overlaps_are_refused_unless_allowed(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["merge", shards[0], shards[1], shards[0], "--output", str(tmp_path / "sum.safetensors")]
    message = exit_message(args, capsys)
    assert "0.txt" in message and "count twice" in message and "--allow_overlap true" in message
    assert not (tmp_path / "sum.safetensors").exists()
    erase_main([*args, "--allow_overlap", "true"])
    assert load_statistics(tmp_path / "sum.safetensors", "files")[1]["captions"] == 9


def test_what_cannot_be_added_is_refused(shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "sum.safetensors")]
    tensors, metadata = read_tensors(Path(shards[1]), "statistics", "files")
    del metadata["kind"], metadata["format_version"]
    other, caption = tmp_path / "other.safetensors", tmp_path / "caption.safetensors"
    write_tensors(other, tensors, "statistics", metadata | {"encoder": "0" * 64})
    write_tensors(caption, tensors, "statistics", metadata | {"token_choice": "caption"})
    for args, message in [
        (["merge", shards[0], *output], "at least two files"),
        (["merge", shards[0], str(other), *output], "another text encoder"),
        (["merge", shards[0], str(caption), *output], "another choice of tokens"),
        (["merge", shards[0], shards[1], *output, "--weights", "[1]"], "one number of 0 or more for each"),
        (["merge", shards[0], shards[1], *output, "--weights", "[1, -1]"], "one number of 0 or more for each"),
        (["merge", shards[0], shards[1], "--output", "sum.pt"], "must end with .safetensors"),
        (["merge", shards[0], shards[1], "--output", shards[2]], "--overwrite true"),
        (["merge", shards[0], "none.safetensors", *output], "is no file"),
    ]:
        assert message in exit_message(args, capsys)
    assert not (tmp_path / "sum.safetensors").exists()


def test_fit_takes_one_file_or_several_with_weights(toy_pipeline: Path, shards: list[str]) -> None:
    first, second = (load_statistics(Path(file), "files")[0] for file in shards[:2])
    model = ConceptErasure(str(toy_pipeline), prior=shards[0], domain={shards[0]: 0.25, shards[1]: 4.0})
    torch.testing.assert_close(model.wanted.refine.prior, first, rtol=0, atol=0)
    close(model.wanted.fuse.domain, 0.25 * first + 4 * second, FLOAT64_SUMS)
    fingerprint = encoder_fingerprint(load_text_parts(str(toy_pipeline)))
    assert weighted_statistics(None, fingerprint, 32, "model.prior") is None
    with pytest.raises(ValueError, match=r"model\.prior: .* has weight -1"):
        weighted_statistics({shards[0]: -1.0}, fingerprint, 32, "model.prior")


def test_the_command_line_takes_both_forms(
    toy_pipeline: Path, shards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    weighted = ["--model.prior", json.dumps({shards[0]: 1, shards[1]: 0.5}), "--model.domain", shards[2]]
    with pytest.raises(SystemExit) as stop:
        erase_main(
            ["fit", "--model.pretrained", str(toy_pipeline), *weighted, "--data.concepts", "[]", "--print_config"]
        )
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"{shards[1]}: 0.5" in printed and f"domain: {shards[2]}" in printed
