"""The command: a toy run is searched, what is found is written as a run of its own and confirmed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import checksums, config, exit_message
from support.tolerances import BY_HAND, FLOAT32_EDIT, close

from mace_pl.cli import erase_main
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.tune_training import Trainings
from mace_pl.concepts.preservation import StageWeights
from mace_pl.errors import UserError
from mace_pl.methods.chosen import chosen
from mace_pl.methods.mace import Mace
from mace_pl.methods.speed import SPEED
from mace_pl.run import Run
from mace_pl.stages.again import Again
from mace_pl.tuning.search import optuna
from mace_pl.tuning.space import space_of
from mace_pl.tuning.trial import solver

NAMES = ["bird", "cat", "house"]
CONCEPTS = [{"target": "ship", "anchor": "ground", "kind": "object"}, {"target": "dog", "anchor": "sky"}]


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    args = config(folder, toy_pipeline, "run", CONCEPTS, steps_per_concept=2)
    names = ["--model.domain_names", f"[{', '.join(NAMES)}]", "--model.refine.domain", "0.1"]
    erase_main([*args, *names, "--report_seeds", "0", "--save_pipeline", "false"])
    return folder / "run"


def words(run: Path, clip: Path, output: Path, *more: str) -> list[str]:
    few = ["--trials", "3", "--seeds", "4", "--confirm_seeds", "4", "--steps", "1", "--save_pipeline", "false"]
    judges = []
    for name, part in (("judge", "64"), ("confirm_by", "100")):
        known = f"[{', '.join(['ship', 'dog', *NAMES])}]"
        judges += [f"--{name}", "support.judges.Sums", f"--{name}.names", known, f"--{name}.part", part]
    return ["tune", "--run", str(run), "--output_dir", str(output), "--classifier", str(clip), *few, *judges, *more]


def test_what_is_solved_again_is_what_the_run_holds(run: Path) -> None:
    old = Run.load(run)
    pipeline, *_ = old.base.load(None, None)
    again = Again(old, pipeline, chosen(old.config["model"].get("method")))
    weights = again.solve(*(StageWeights(**old.config["model"][stage]) for stage in ("refine", "fuse")))
    held = old.refined({f"{name}.weight": weight for name, weight in again.layers.items()})
    close({f"{name}.weight": weight for name, weight in weights.items()}, held, FLOAT32_EDIT)


def test_a_method_without_weights_has_nothing_to_search(run: Path) -> None:
    again = solver(Run.load(run), None, None)
    again.method = SPEED()
    with pytest.raises(UserError, match="has no weights, so there is nothing to search"):
        space_of(again, 10.0, False)
    again.method = Mace(refinement=SPEED())
    assert {name.partition(".")[0] for name in space_of(again, 10.0, False)[0]} == {"fuse"}


def test_strengths_are_those_of_fuse(run: Path, tmp_path: Path) -> None:
    again = solver(Run.load(run), None, None)
    assert "strength.dog" in space_of(again, 10.0, None)[0] and "strength.dog" not in space_of(again, 10.0, False)[0]
    strengths = {"ship": 0.5, "dog": 0.75}
    refine, fuse = (StageWeights(**Run.load(run).config["model"][stage]) for stage in ("refine", "fuse"))
    weights = again.solve(refine, fuse, strengths)
    fuse_run(str(run), str(tmp_path / "part"), weights=strengths, save_pipeline=False)
    held = Run.load(tmp_path / "part").refined({f"{name}.weight": weight for name, weight in again.layers.items()})
    close({f"{name}.weight": weight for name, weight in weights.items()}, held, FLOAT32_EDIT)
    assert space_of(solver(Run.load(tmp_path / "part"), None, None), 10.0, True)[1]["strength.dog"] == 0.75


def test_where_the_own_weights_are_taken_the_confirmation_is_of_one_edit(
    run: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mace_pl.commands.tune.of_values", None)  # the same images are not generated twice
    erase_main(words(run, toy_clip, tmp_path / "tuned", "--trials", "1"))
    assert "the same edit" in capsys.readouterr().out
    figures = json.loads((tmp_path / "tuned.study" / "tuning.json").read_text())["figures"]
    assert figures["confirmation, taken"] == figures["confirmation, the run as it was"]


def test_a_run_is_searched_confirmed_and_written(
    run: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, tuned, study = checksums(run), tmp_path / "tuned", tmp_path / "tuned.study"
    erase_main(words(run, toy_clip, tuned))
    said = capsys.readouterr().out
    found = json.loads((study / "tuning.json").read_text())
    assert checksums(run) == before and sorted(f.name for f in study.iterdir() if f.suffix != ".sqlite3") == [
        "tuning.html",
        "tuning.json",
    ]
    assert found["trials"]["scored"] + found["trials"]["cut short"] == 3
    lines = said.splitlines()
    assert any("refine.domain" in line for line in lines)
    assert max(len(line) for line in lines if "│" in line) <= 80
    assert ("the same edit" in said) == (found["weights"] == found["tried"][0]["weights"])
    weights = {f"{stage}.{term}" for stage in ("refine", "fuse") for term in ("identity", "domain")}
    assert set(found["weights"]) == {*weights, "strength.ship", "strength.dog"}
    assert found["gap"] == found["figures"]["search, taken"]["h"] - found["figures"]["confirmation, taken"]["h"]
    assert f"H from search to confirmation: {-found['gap']:+.3f}" in said and "Trials that no other beats" in said
    written = yaml.safe_load((tuned / "config.yaml").read_text())["model"]
    said = Run.load(tuned).fused
    for key, value in found["weights"].items():
        stage, _, term = key.partition(".")
        assert (said.weights[term] if stage == "strength" else written[stage][term]) == value
    assert written["fuse"]["growth"] == 0  # what was found is meant for these targets
    first = found["tried"][0]["weights"]
    assert (first["refine.identity"], first["refine.domain"], first["fuse.identity"]) == (1.0, 0.1, 1.0)
    close([first["fuse.domain"], first["strength.ship"]], [0.15 * 2**0.9, 1.0], BY_HAND)
    erase_main(words(run, toy_clip, tmp_path / "again", "--study", str(study)))  # all trials are there
    first_run, second_run = (load_file(folder / "refined.safetensors") for folder in (tuned, tmp_path / "again"))
    assert all(torch.equal(weight, first_run[name]) for name, weight in second_run.items())


def test_loras_are_trained_once_for_each_setting(run: Path, toy_clip: Path, tmp_path: Path) -> None:
    again = solver(Run.load(run), None, None)
    trainings = Trainings(again, tmp_path / "tuned.study")
    assert trainings.own == (0.01, 2, 1) and trainings(dict[str, float]()) is again.loras
    other = {"train.lr": 0.03, "train.steps": 1.0, "train.rank": 2.0}
    made = trainings.run_of(other)
    before = checksums(made.folder)
    refine, fuse = (StageWeights(**made.config["model"][stage]) for stage in ("refine", "fuse"))
    weights = again.solve(refine, fuse, loras=trainings(other))
    held = made.refined({f"{name}.weight": weight for name, weight in again.layers.items()})
    close({f"{name}.weight": weight for name, weight in weights.items()}, held, FLOAT32_EDIT)
    assert Trainings(again, tmp_path / "tuned.study").run_of(other).folder == made.folder
    assert checksums(made.folder) == before  # by another process too
    assert made.folder.with_name(f"{made.folder.name}.lock").is_file()  # of this setting alone: others train meanwhile
    assert (made.config["model"]["lr"], made.config["model"]["rank"]) == (0.03, 2)


def test_training_is_searched_and_what_is_taken_is_written(run: Path, toy_clip: Path, tmp_path: Path) -> None:
    tuned, study = tmp_path / "tuned", tmp_path / "tuned.study"
    erase_main(words(run, toy_clip, tuned, "--train", "true", "--strengths", "false"))
    found = json.loads((study / "tuning.json").read_text())["weights"]
    written = yaml.safe_load((tuned / "config.yaml").read_text())
    taken = (written["model"]["lr"], written["data"]["steps_per_concept"], written["model"]["rank"])
    assert taken == tuple(found[f"train.{name}"] for name in ("lr", "steps", "rank"))
    folders = {place.name for place in (study / "adding").iterdir() if place.is_dir() and place.name[0] != "."}
    settings = {tuple(t.params[f"train.{n}"] for n in ("lr", "steps", "rank")) for t in trials_of(study)}
    assert (0.01, 2, 1) in settings and len(folders) == len(settings) - 1 > 0  # the first trial is the run as it is


def trials_of(study: Path) -> list[Any]:
    return optuna().load_study(study_name="tune", storage=f"sqlite:///{study / 'study.sqlite3'}").trials


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--at_most", "acc_e"], "at_most=acc_e must be acc_e="),
        (["--pilot_seeds", "5"], "pilot_seeds=5 must be at most"),
        (["--spread", "1"], "spread=1.0 must be above 1"),
        (["--far", "-1"], "far=-1 must be at least 0"),
        (["--guidance", "-3"], "guidance=-3.0 must be at least 0"),
        (["--study", str(Path(__file__))], "test_tune.py is a file. Give the folder"),
        (["--study", "{run}"], "is the run ("),
        (["--study", "{base}"], "is the base model"),
        (["--study", f"{__file__}/study"], "test_tune.py/study cannot be made"),
        (["--study", "{tmp}/tuned/study"], "tuned, which is written as a whole. Give a folder beside"),
        (["--output_dir", "{run}/report", "--overwrite", "true"], "lies in the run ("),
        (["--sentences", "nowhere.json"], "error: sentences=nowhere.json does not exist"),
        (["--classifier", "nowhere"], "error: classifier=nowhere has no config.json"),
        (["--names", "[ship]"], "names: the run has no model.domain_names"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    run: Path, toy_clip: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word.format(run=run, tmp=tmp_path, base=Run.load(run).base.pretrained) for word in more]
    assert message in exit_message(words(run, toy_clip, tmp_path / "tuned", *more), capsys)
    assert not list(tmp_path.iterdir())
