"""``test`` with a vocabulary, several judges, levels of prompts, and an edit that leaves white squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.finished import finished_run
from support.runs import exit_message
from support.tolerances import SCORES, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run

ALWAYS = "{class_path: support.judges.Always, init_args: {names: [ship, dog, cat, ground], answer: ship}}"


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Erases the ship, with the anchor ground."""
    folder = finished_run(tmp_path_factory.mktemp("runs") / "run", toy_pipeline)
    export_run(run=str(folder), format="refined")
    return folder


def command(pipeline: Path, clip: Path, output: Path) -> list[str]:
    return [
        *("--model.pretrained", str(pipeline), "--model.classifier", str(clip), "--model.output", str(output)),
        *("--model.steps", "2", "--data.seeds", "2", "--data.batch_size", "3", "--trainer.logger", "false"),
        *("--data.names", "[ship, dog, cat]", "--trainer.enable_progress_bar", "false"),
        *("--data.synonyms", "{ship: [boat]}"),
    ]


def scored(args: list[str]) -> dict[str, Any]:
    erase_main(args)
    scores: dict[str, Any] = json.loads(Path(args[args.index("--model.output") + 1]).read_text())
    return scores


def white(pipeline: Path, folder: Path) -> Path:
    """The same pipeline with an autoencoder that decodes everything to white."""
    made = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    with torch.no_grad():
        made.vae.decoder.conv_out.weight.zero_()
        made.vae.decoder.conv_out.bias.fill_(5.0)
    made.save_pretrained(folder)
    return folder


def test_white_squares_are_a_failure_in_every_table(
    toy_pipeline: Path, toy_clip: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = white(toy_pipeline, tmp_path / "blank")
    args = [*command(toy_pipeline, toy_clip, tmp_path / "s.json"), "--model.targets", "{ship: cat}"]
    found = scored(["compare", str(run), str(blank), *args, "--model.names", "[moon, ship, ground]"])
    assert found["settings"]["classes"] == ["ship", "dog", "cat", "moon", "ground"]
    assert found["settings"]["runs"]["blank"]["anchors"] == ["cat"]
    failed, whole = found["scores"]["blank"], found["scores"]["run"]
    assert failed["after"]["shares"] == {"target": 0, "anchor": 0, "other": 0, "empty": 1}
    assert len(failed["fails"]) == 2 and whole["fails"] == []
    assert failed["after"]["top1"]["acc_s"] == 0  # an empty image shows none of the names
    assert sum(whole["after"]["shares"].values()) == 1
    lines = (tmp_path / "s.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| blank"))
    assert "✗ 1.000" in row and "✗ blank has failed: 100% of the images of what is erased are empty" in lines
    assert "✗ blank has failed" in capsys.readouterr().out
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert '<p class="bad">✗ blank has failed: 100%' in page


def test_two_judges_give_what_each_gives_alone(toy_pipeline: Path, toy_clip: Path, run: Path, tmp_path: Path) -> None:
    judges = {"clip": "[clip]", "Always": f"[{ALWAYS}]", "both": f"[clip, {ALWAYS}]"}
    found = {}
    for name, judge in judges.items():
        args = ["test", *command(toy_pipeline, toy_clip, tmp_path / f"{name}.json"), "--model.runs", f"[{run}]"]
        args += ["--model.judge", judge, "--model.names", "[ground]"]
        found[name] = scored(args + (["--model.chosen_by", "Always"] if name == "both" else []))
    lone = scored(["test", *command(toy_pipeline, toy_clip, tmp_path / "lone.json"), "--model.judge", judges["both"]])
    assert list(lone["scores"]) == ["original"] and list(lone["scores"]["original"]["judges"]) == ["clip", "Always"]
    assert "top1, Always" in (tmp_path / "lone.html").read_text(encoding="utf-8")
    for model in ("original", "run"):
        both = found["both"]["scores"][model]["judges"]
        assert list(both) == ["clip", "Always"]
        for name, own in both.items():
            alone = found[name]["scores"][model]
            kinds = ("top1", "probability") if model == "original" else ("before", "after", "concepts", "fails")
            assert all(own[kind] == alone[kind] for kind in kinds)
            assert "judges" not in alone
    settings = found["both"]["settings"]
    assert (settings["judges"], settings["chosen_by"]) == (["clip", "Always"], "Always")
    row = found["both"]["scores"]["run"]["judges"]["Always"]["after"]
    assert row["top1"]["acc_e"] == 1 and row["top1"]["acc_s"] == 0
    table = (tmp_path / "both.md").read_text(encoding="utf-8")
    assert "| run | clip (reports)" in table and "| run | Always (chose the settings)" in table
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert page.count("<td>Always (chose the settings)</td>") >= 2


def test_levels_count_what_the_original_can_do(toy_pipeline: Path, toy_clip: Path, run: Path, tmp_path: Path) -> None:
    said, told = tmp_path / "said.json", tmp_path / "told.json"
    said.write_text(json.dumps({"slots": {"who": ["my aunt"]}, "held_out": ["{who} met {a}", "look at {the}"]}))
    told.write_text(json.dumps({"ship": ["it floats"], "dog": ["it barks"]}))
    files = ["--data.sentences", str(said), "--data.descriptions", str(told)]
    args = [*command(toy_pipeline, toy_clip, tmp_path / "s.json"), "--model.judge", f"[{ALWAYS}, clip]", *files]
    whole = export_run(run=str(run), format="pipeline")
    found = scored(["compare", str(run), str(whole), *args, "--model.targets", "[ship]"])
    always = found["scores"]["run"]["judges"]["Always"]["levels"]
    # every image is a ship to this judge: the original answers what asks for a ship, and nothing else
    assert {level: rates["counted"]["target"] for level, rates in always.items()} == {
        "name": 1,
        "attributes": 5,
        "sentences": 2,
        "synonyms": 1,
        "descriptions": 1,
    }
    assert all(rates["counted"]["near"] == rates["counted"]["far"] == 0 for rates in always.values())
    assert always["sentences"]["asked"] == {"target": 2, "near": 4, "far": 0}
    assert all(rates["target"] == 1 for rates in always.values())
    before, after = always["sentences"]["rest"]
    assert before != after and always["descriptions"]["rest"] is None
    # the whole pipeline comes in a pass of its own, and is the same model
    assert found["scores"]["pipeline"]["judges"]["Always"]["levels"]["sentences"]["target"] == 1
    close(found["scores"]["pipeline"]["judges"]["Always"]["levels"]["sentences"]["rest"], [before, after], SCORES)
    assert "| run | Always | sentences | 1.000" in (tmp_path / "s.md").read_text(encoding="utf-8")
    assert "By levels of prompts" in (tmp_path / "s.html").read_text(encoding="utf-8")
    alone = found["scores"]["original"]["judges"]["Always"]["levels"]
    assert alone["sentences"] == {"asked": 6, "answered": 2, "seen": 2 / 6}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.chosen_by", "nobody"], "model.chosen_by=nobody is none of the judges ['clip']"),
        (["--model.judge", f"[{ALWAYS}]", "--model.names", "[moon]"], "the judge does not know moon"),
        (["--data.sentences", "nowhere.json"], "data.sentences=nowhere.json is no file"),
        (["--model.names", "nowhere.txt"], "model.names"),
        (["--model.judge", "[]"], "model.judge is empty"),
    ],
)
def test_bad_settings_are_refused(
    toy_pipeline: Path,
    toy_clip: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in exit_message(["test", *command(toy_pipeline, toy_clip, tmp_path / "s.json"), *more], capsys)
