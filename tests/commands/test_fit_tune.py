"""``fit --tune``: the run is made, searched and confirmed by one command, which resumes where it was killed."""

import json
import re
from pathlib import Path

import pytest
import yaml
from support.forks import SCRIPT, forked
from support.runs import checksums, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.run import Run

NAMES = ["bird", "cat", "house"]
CONCEPTS = [{"target": "ship", "anchor": "ground", "kind": "object"}]


def words(folder: Path, pipeline: Path, clip: Path, *more: str) -> list[str]:
    known = f"[{', '.join(['ship', *NAMES])}]"
    args = config(folder, pipeline, "run", CONCEPTS, steps_per_concept=1)
    args += ["--model.domain_names", f"[{', '.join(NAMES)}]", "--save_pipeline", "false", "--report_seeds", "0"]
    args += ["--classifier", str(clip), "--tune", "2", "--judge", "support.judges.Sums", "--judge.names", known]
    return [*args, *more]


def test_a_killed_command_resumes_and_the_pick_is_the_output(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, died = f"[{', '.join(['ship', *NAMES])}]", tmp_path / "died"
    dies = ["--confirm_by", "support.judges.Dies", "--confirm_by.names", known, "--confirm_by.file", str(died)]
    args = words(tmp_path, toy_pipeline, toy_clip, *dies)
    killed = forked(SCRIPT, args)
    assert killed.returncode == -9 and died.exists(), killed.stderr
    assert not (tmp_path / "run").exists()
    before = checksums(tmp_path / "run-untuned")
    erase_main(args)  # neither trained nor searched again: it is confirmed and written
    said = capsys.readouterr().out
    assert checksums(tmp_path / "run-untuned") == before and "The run is there, and is searched" in said
    found = json.loads((tmp_path / "run.study" / "tuning.json").read_text())
    assert found["trials"]["scored"] + found["trials"]["cut short"] == 2
    assert (found["judge"], found["confirmed"]["judge"]) == ("Sums", "Dies")
    settings, run = yaml.safe_load((tmp_path / "run/config.yaml").read_text()), Run.load(tmp_path / "run")
    assert run.fused is not None and not {"tune", "judge", "confirm_by"} & set(settings)
    assert settings["model"]["fuse"]["identity"] == found["weights"]["fuse.identity"]
    assert "output_dir" in exit_message(args, capsys)  # it is there now
    erase_main([*args, "--data.steps_per_concept", "2", "--overwrite", "true"])  # another run, and a search of its own
    said = capsys.readouterr().out
    assert said.count("What next") == 1, "behind the search, not before it"
    most, asked = re.search(r"│ search .* (\d+) images at most", said), re.search(r"of (\d+) images count", said)
    assert most is not None and asked is not None
    assert (2 + 2) * int(asked[1]) <= int(most[1]) <= 12 * int(asked[1]), "trials, original, run; and a confirmation"
    trained = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["steps_per_concept"]
    assert trained == 2 and checksums(tmp_path / "run-untuned") != before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tune", "0"], "tune=0 must be at least 1"),
        (["--classifier", "null"], "tune=2 wants a classifier"),
        (["--model.harden", "{}"], "Leave --model.harden out"),
        (["--judge", "clap"], "judge"),
        (["--classifier", "nowhere"], "error: classifier=nowhere has no config.json"),
        (["--tune", "null"], "is of a search, and none is asked for. Give --tune"),
        (["--model.domain_names", "null"], "no name is preserved that could be scored. Give some as --kept"),
        (["--model.domain_names", "[moon]"], "model.domain_names or kept: the judge does not know moon"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_trained(
    more: list[str],
    message: str,
    toy_pipeline: Path,
    toy_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in exit_message(words(tmp_path, toy_pipeline, toy_clip, *more), capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_a_refused_order_leaves_an_earlier_search_as_it_is(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "run.study/study.sqlite3"
    study.parent.mkdir()
    study.write_bytes(b"a long search")
    args = words(tmp_path, toy_pipeline, toy_clip, "--overwrite", "true", "--model.domain_names", "[moon]")
    assert "does not know moon" in exit_message(args, capsys)
    assert study.read_bytes() == b"a long search" and not (study.parent / "fit.json").exists()
