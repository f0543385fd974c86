"""``anchor: auto`` in whole runs: chosen once, written down, the same when resumed, and a user's own always wins."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import config

from mace_pl import erase
from mace_pl.cli import erase_main
from mace_pl.concepts.concept import AUTO
from mace_pl.run import Run

NAMES = ["dog", "cat", "sky", "ground", "art", "house", "tree"]
QUIET = ["--save_pipeline", "false", "--report_seeds", "0"]
PRESERVED = ["--model.domain_names", json.dumps(NAMES), "--model.refine.domain", "0.1"]


def anchors(folder: Path) -> dict[str, str]:
    """Of a run, as its edit names them and as its configuration does."""
    run = Run.load(folder)
    named = {one["target"]: one["anchor"] for one in run.concepts}
    assert {one["target"]: one["anchor"] for one in run.config["data"]["concepts"]} == named
    return named


@pytest.fixture(scope="module")
def chosen(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ship has no anchor and whose dog has one."""
    place = tmp_path_factory.mktemp("anchors")
    concepts = [{"target": "ship"}, {"target": "dog", "anchor": "cat"}]
    erase_main([*config(place, toy_pipeline, "run", concepts), *PRESERVED, *QUIET])
    return place / "run"


def test_a_run_writes_what_it_has_chosen_and_is_repeated_by_its_configuration(
    chosen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = anchors(chosen)
    assert named["dog"] == "cat" and named["ship"] in {*NAMES} - {"dog"}
    assert f"the anchor of 'ship' is '{named['ship']}'" in (chosen / "report" / "run.log").read_text().replace(
        "\n", " "
    )
    again = chosen.parent / "again"
    erase_main(["fit", "--config", str(chosen / "config.yaml"), "--output_dir", str(again)])
    assert "the anchor of" not in capsys.readouterr().out
    whole, second = (load_file(run / "refined.safetensors") for run in (chosen, again))
    assert all(torch.equal(whole[key], second[key]) for key in whole)


def test_an_interrupted_run_keeps_its_choice(toy_pipeline: Path, tmp_path: Path) -> None:
    """The file that it leaves is what counts: here it names another anchor than the rule would."""
    args = [*config(tmp_path, toy_pipeline, "run", [{"target": "ship", "anchor": AUTO}]), *PRESERVED, *QUIET]
    stop = [{"class_path": "support.runs.Stop", "init_args": {"after": 1}}]
    with pytest.raises(SystemExit):
        erase_main([*args, "--trainer.callbacks", json.dumps(stop)])
    file = tmp_path / ".run.training" / "anchors.json"
    left = json.loads(file.read_text())
    other = next(name for name in NAMES if name not in ("dog", left["anchors"]["ship"]))
    file.write_text(json.dumps(left | {"anchors": {"ship": other}}))
    erase_main(args)
    assert anchors(tmp_path / "run") == {"ship": other} and not file.parent.exists()


def test_a_choice_among_other_names_is_not_taken(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ".run.training" / "anchors.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"inputs": {"names": [[], ["sky"], []]}, "anchors": {"ship": "sky"}}))
    args = [*config(tmp_path, toy_pipeline, "run", [{"target": "ship"}]), "--data.anchors", "[street]", *QUIET]
    erase_main(args)
    assert "Not used again: anchors in" in capsys.readouterr().out
    assert anchors(tmp_path / "run") == {"ship": "street"}


def test_no_anchor_is_chosen_for_a_method_without_anchors(toy_pipeline: Path, tmp_path: Path) -> None:
    args = config(tmp_path, toy_pipeline, "run", [{"target": "ship"}])
    erase_main([*args, "--model.method", "CURE", *QUIET])
    assert anchors(tmp_path / "run") == {"ship": ""}


def test_a_judge_looks_at_what_the_rule_proposes(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mace_pl")
    settings = yaml.safe_load(Path(config(tmp_path, toy_pipeline, "run", [{"target": "ship"}])[2]).read_text())
    settings["data"] |= {"anchors": ["sky", "tree"], "image_steps": 2}
    run = erase(**settings | {"classifier": str(toy_clip), "report_seeds": 0, "save_pipeline": False})
    assert anchors(run.folder)["ship"] in ("sky", "tree") and "of its images)" in caplog.text


def test_add_chooses_none_of_the_library_s_targets(chosen: Path, tmp_path: Path) -> None:
    library = shutil.copytree(chosen, tmp_path / "library")
    erase_main(["add", "--run", str(library), "--concepts", "[{target: tree}]"])
    named = {one["target"]: one["anchor"] for one in Run.load(library).concepts}
    assert named["tree"] in {*NAMES} - {"dog", "tree"}
