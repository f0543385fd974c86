"""What is shown of entries that are trained, and what that leaves for the next change."""

import re
from pathlib import Path

import pytest
from support.runs import CONCEPTS, config, exit_message

from mace_pl.cli import erase_main
from mace_pl.commands.library import add_concepts, replace_concepts

DOG = {"target": "dog", "anchor": "sky", "kind": "object"}


def test_what_is_shown_of_a_new_entry_is_chosen(toy_pipeline: Path, tmp_path: Path) -> None:
    """The images of the original model are there for the next change; of the edited one none is left."""
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1])
    erase_main([*args, "--save_pipeline", "false", "--report_seeds", "0"])
    stored, run = tmp_path / "pictures" / ".originals", tmp_path / "run"
    assert not stored.exists()
    add_concepts(str(run), [DOG], kept=["cat"], report_seeds=2)
    images = set(stored.iterdir())
    assert len(images) == 2 * 2
    replace_concepts(str(run), [{**DOG, "anchor": "art"}], kept=[], report_seeds=3)
    assert len(set(stored.iterdir()) - images) == 1  # the dog, by the third seed
    assert not list(run.rglob("before_after.png"))


@pytest.fixture(scope="module")
def untrained(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a method that trains nothing."""
    place = tmp_path_factory.mktemp("untrained")
    quick = ["--model.method", "MaceRefinement", "--save_pipeline", "false", "--report_seeds", "0"]
    erase_main([*config(place, toy_pipeline, "run", CONCEPTS[:1]), *quick])
    return place / "run"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--report_seeds", "100000000000"], "report_seeds=100000000000 must be from 0, .* to 1000"),
        (["--report_seeds", "-7"], "report_seeds=-7 must be from 0"),
        (["--kept", '[cat, "", cat]'], r"kept: a name of \['cat', '', 'cat'\] is empty"),
        (["--retrain_above", ""], "retrain_above= must be one of: a finite number, null"),
        (["--templates", "nix.txt"], "(?<!data.)templates=nix.txt"),
        (["--concepts", "[{target: dog, ancor: sky}]"], "(?<!data.)concepts: cannot read .* ancor does not exist"),
    ],
)
@pytest.mark.parametrize(("command", "target"), [("add", "cat"), ("replace", "ship")])
def test_settings_have_the_names_of_the_command(
    command: str, target: str, words: list[str], says: str, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And are checked before anything is made."""
    files = {path for path in untrained.rglob("*") if path.name != ".lock"}
    concepts = ["--concepts", f"[{{target: {target}, anchor: sky}}]"]
    message = exit_message([command, "--run", str(untrained), *concepts, *words], capsys)
    assert re.search(says, message), message
    assert {path for path in untrained.rglob("*") if path.name != ".lock"} == files
