"""What is refused changes nothing; what is lost or damaged is named, and a sound state comes back."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import config, exit_message

from mace_pl.cli import erase_main
from mace_pl.commands.library import add_concepts, remove_concepts, undo_change
from mace_pl.errors import UserError
from mace_pl.files.owned import refuse_foreign
from mace_pl.library.change import Library
from mace_pl.library.lock import writing
from mace_pl.library.states import Base
from mace_pl.library.store import read_entry
from mace_pl.run import Run
from mace_pl.studio.saving import Saved, save_state

QUICK = ["--model.method", "MaceRefinement", "--save_pipeline", "false", "--report_seeds", "0"]
CAT = "[{target: cat, anchor: sky}]"


@pytest.fixture(scope="module")
def ship(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    place = tmp_path_factory.mktemp("damage")
    erase_main([*config(place, toy_pipeline, "run", [{"target": "ship", "anchor": "ground"}]), *QUICK])
    return place / "run"


@pytest.fixture(scope="module")
def three(ship: Path) -> Path:
    """A library with three states: the ship, both, the dog."""
    library = Path(shutil.copytree(ship, ship.with_name("three")))
    add_concepts(str(library), [{"target": "dog", "anchor": "sky"}])
    return remove_concepts(str(library), "ship")


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "my run's copy"))


def states(library: Path) -> list[Path]:
    """The folders of its states, in order."""
    history = json.loads((library / "library.json").read_text())["history"]
    return [library / "states" / event["state"] for event in history]


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but for the lock, which says nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def test_undo_to_a_lost_state_changes_nothing(three: Path, tmp_path: Path) -> None:
    library = copy(three, tmp_path)
    shutil.rmtree(states(library)[1])
    before = files(library)
    for to in (None, states(library)[1].name[:12]):
        with pytest.raises(UserError, match=f"states/{states(library)[1].name}.*Restore it from a copy"):
            undo_change(str(library), to)
    assert files(library) == before
    undo_change(str(library), states(library)[0].name)
    assert Run.load(library).targets == ["ship"]


def test_undo_goes_on_without_the_first_state(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = copy(three, tmp_path)
    shutil.rmtree(states(library)[0])
    undo_change(str(library))
    assert Run.load(library).targets == ["dog", "ship"]
    shown = re.search("For a pipeline: (.*); then", capsys.readouterr().out)
    assert shown is not None and Path(shlex.split(shown[1])[3]) == library  # a shell takes the command as it is


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (shutil.rmtree, "edit.safetensors"),
        (lambda state: (state / "state.json").unlink(), "state.json"),
        (lambda state: (state / "state.json").write_text("{}"), "state.json"),
        (lambda state: (state / "config.yaml").unlink(), "config.yaml"),
        (lambda state: truncate(state / "edit.safetensors"), "edit.safetensors"),
    ],
    ids=["gone", "no state.json", "empty state.json", "no settings", "truncated edit"],
)
def test_a_damaged_state_is_named_and_undone(
    damage: Callable[[Path], object], names: str, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = copy(three, tmp_path)
    current = states(library)[-1]
    damage(current)
    before = files(library)
    for words in (["remove", "--targets", "ship"], ["add", "--concepts", CAT], ["log"]):
        with pytest.raises(SystemExit) as ended:
            erase_main([words[0], "--run", str(library), *words[1:]])
        message = str(ended.value)
        assert current.name in message and names in message and "undo --to" in message
        assert ("remove" in capsys.readouterr().out) == (words == ["log"])  # the history, for undo
    assert files(library) == before and not list(library.glob("states/*/.lock"))
    undo_change(str(library))
    assert Run.load(library).targets == ["dog", "ship"]


def test_lost_and_damaged_entries_are_named(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = copy(three, tmp_path)
    entry = Library.open(str(library)).members.entries["dog"]
    file = library / "entries" / entry / "entry.json"
    said = json.loads(file.read_text())
    for content in ({}, said | {"more": 1}, said | {"concept": 3}, said | {"refinement": 3}):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"entry.json is damaged.*Restore it from a copy of the library"):
            read_entry(library, entry)
    sums = library / "entries" / entry / "statistics" / "dog.safetensors"
    sums.write_bytes(sums.read_bytes()[:-1] + bytes([sums.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is damaged: .*Restore it from a copy of the library"):
        Run.load(library).concept("dog")
    shutil.rmtree(library / "entries")
    before = files(library)
    for words in (["remove", "--targets", "dog"], ["add", "--concepts", CAT], ["undo"]):
        message = exit_message([words[0], "--run", str(library), *words[1:]], capsys)
        assert "entries/" in message and "Restore it from a copy of the library" in message
    assert files(library) == before


def test_nothing_to_do_is_refused(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(three)
    assert "names none" in exit_message(["remove", "--run", str(three), "--targets", "[]"], capsys)
    current = states(three)[-1].name
    assert "current state already" in exit_message(["undo", "--run", str(three), "--to", current], capsys)
    assert files(three) == before


def test_a_refused_change_leaves_a_run_as_it_was(
    ship: Path, toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To be replaced by fit too, also after a change that was killed."""
    run = copy(ship, tmp_path)
    before = files(run)
    for words, says in (
        (["undo"], "is no library yet"),
        (["remove", "--targets", "ship"], "nothing would be left"),
        (["add", "--merge", str(ship)], "has no entry that"),
        (["add", "--concepts", "[{target: dog, anchor: dog}]"], "anchor"),
    ):
        assert says in exit_message([words[0], "--run", str(run), *words[1:]], capsys)
        assert files(run) == before
    with pytest.raises(UserError, match="nothing would be left"):
        save_state(Saved(Run.load(run), {}), Base.load(Run.load(run)), {}, None, None)
    assert files(run) == before
    Library.open(str(run)).founded(Base.load(Run.load(run)))
    words = config(tmp_path, toy_pipeline, run.name, [{"target": "ship", "anchor": "ground"}])
    erase_main([*words, *QUICK, "--overwrite", "true"])
    assert not (run / "states").exists() and Run.load(run).targets == ["ship"]


def test_founding_that_fails_or_is_killed_leaves_the_run_as_it_was(ship: Path, tmp_path: Path) -> None:
    run = copy(ship, tmp_path)
    before = files(run)
    Library.open(str(run)).founded(Base.load(Run.load(run)))  # killed before the history is written
    after = files(run)
    assert {name: after[name] for name in before} == before and len(list(run.glob("states/*"))) == 1
    refuse_foreign(run, "output_dir")
    add_concepts(str(run), [{"target": "dog", "anchor": "sky"}])
    assert not (run / ".written.json").exists() and (states(run)[0] / ".written.json").is_file()


def test_a_run_that_is_written_is_not_replaced(ship: Path, tmp_path: Path) -> None:
    run = copy(ship, tmp_path)
    with writing(run), pytest.raises(UserError, match=r"output_dir: process \d+ on .* is writing"):
        refuse_foreign(run, "output_dir")
    refuse_foreign(run, "output_dir")


def test_a_folder_in_the_place_of_the_note_is_said(tmp_path: Path) -> None:
    (tmp_path / ".writer.json").mkdir()
    with pytest.raises(UserError, match=r"\.writer\.json is a folder"), writing(tmp_path):
        pass


def test_a_state_without_its_edit_is_not_brought_back(three: Path, tmp_path: Path) -> None:
    """Nor is it built upon; that an export of it was removed does not matter."""
    library = copy(three, tmp_path)
    lost, whole = states(library)[1], states(library)[0]
    for place in ("refined.safetensors", "edit.safetensors"):
        (lost / place).rename(tmp_path / place)
        before = files(library)
        for to in (None, lost.name[:12]):
            with pytest.raises(UserError, match=f"{lost.name}.{place} is not there.*Restore it from a copy"):
                undo_change(str(library), to)
        assert files(library) == before
        (tmp_path / place).rename(lost / place)
    (lost / "edit.safetensors").write_bytes(b"half of it")
    with pytest.raises(UserError, match="no readable safetensors file"):
        undo_change(str(library), lost.name)
    (states(library)[2] / "edit.safetensors").unlink()
    with pytest.raises(UserError, match=r"edit.safetensors is not there"):
        add_concepts(str(library), [{"target": "cat", "anchor": "sky"}])
    undo_change(str(library), whole.name)
    assert Run.load(library).targets == ["ship"]


def test_the_date_of_a_run_is_not_that_of_its_copy(ship: Path, tmp_path: Path) -> None:
    library = copy(ship, tmp_path)
    said = json.loads((library / "report/progress.json").read_text())["updated"][:19]
    os.utime(library / "edit.safetensors", (1e9, 1e9))
    add_concepts(str(library), [{"target": "dog", "anchor": "sky"}])
    history = Library.open(str(library)).history
    assert history.events[0].date == f"{said}+00:00" == history.notes()["ship"].date
