"""The history only grows; undo goes back from state to state, and forth by a state's id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json
from mace_pl.files.versions import current
from mace_pl.library.history import Event, History, Note


def grown(*states: str) -> History:
    history = History()
    for state in states:
        history = history.then(Event("add", state, added={state: Note(f"hash of {state}", "2030")}))
    return history


def undone(history: History, to: str | None = None) -> History:
    number = history.earlier(to)
    return history.then(Event("undo", history.events[number].state, number))


def test_undo_goes_back_step_by_step_and_forth_by_id() -> None:
    history = grown("a1", "b2", "c3")
    back = undone(history)
    assert back.events[-1].state == "b2" and list(back.notes()) == ["a1", "b2"]
    first = undone(back)
    assert first.events[-1].state == "a1"
    with pytest.raises(UserError, match="nothing is left to undo"):
        first.earlier(None)
    forth = undone(first, "c")
    assert forth.events[-1].state == "c3" and set(forth.notes()) == {"a1", "b2", "c3"}
    assert [event.state for event in undone(forth).events] == ["a1", "b2", "c3", "b2", "a1", "c3", "b2"]


def test_what_follows_an_undo_is_undone_to_the_state_that_came_back() -> None:
    history = undone(grown("a1", "b2")).then(Event("add", "d4", added={"d": Note("hash of d", "2031")}))
    assert set(history.notes()) == {"a1", "d"}
    assert undone(history).events[-1].state == "a1"


def test_a_later_note_of_a_target_counts() -> None:
    history = grown("a1").then(Event("replace", "b2", added={"a1": Note("another", "2031", "why", "who")}))
    assert history.notes()["a1"] == Note("another", "2031", "why", "who")
    assert undone(history).notes()["a1"].content == "hash of a1"


@pytest.mark.parametrize(
    ("to", "says"), [("b", "several states"), ("x", "no state"), ("b3", "this is the current state already")]
)
def test_an_id_must_be_that_of_one_state(to: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"to={to}: {says}"):
        grown("a1", "b2", "b3").earlier(to)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    assert not History.load(tmp_path).events
    assert current(tmp_path) == tmp_path
    history = undone(grown("a1", "b2"))
    history.save(tmp_path)
    assert History.load(tmp_path) == history
    assert current(tmp_path) == tmp_path / "states" / "a1"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "cannot be read"),
        ("[]", "is no file of a library"),
        ('{"format_version": "9", "history": []}', "format version '9'"),
        ('{"format_version": "1"}', "is damaged"),
        ('{"format_version": "1", "history": [{"action": "add"}]}', "is damaged"),
        ('{"format_version": "1", "history": {"action": "add"}}', "is damaged"),
    ],
)
def test_a_damaged_file_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "library.json").write_text(content)
    with pytest.raises(UserError, match=f"library.json.*{says}"):
        History.load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"added": []}, "no attribute"),
        ({"added": {"a": {"content": 3, "date": "2030"}}}, "no text"),
        ({"added": {"a": {"content": "x", "date": "2030", "scores": {"before": "high"}}}}, "no number"),
        ({"before": 99}, "event 1 follows event 99"),
        ({"before": None}, "event 1 follows event None"),
        ({"date": None}, "no text"),
        ({"targets": [1]}, "no text"),
        ({"state": 5}, "no text"),
        ({"more": 1}, "unexpected keyword"),
    ],
)
def test_a_damaged_event_is_refused(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    grown("a1", "b2").save(tmp_path)
    content = json.loads((tmp_path / "library.json").read_text())
    content["history"][1] |= wrong
    write_json(tmp_path / "library.json", content)
    with pytest.raises(UserError, match=rf"library.json is damaged.*{says}.*Restore it from a copy of the library"):
        History.load(tmp_path)


def test_the_format_version_is_said_before_the_state(tmp_path: Path) -> None:
    write_json(tmp_path / "library.json", {"format_version": "9", "history": [{"state": "unknown"}]})
    with pytest.raises(UserError, match="format version '9'"):
        current(tmp_path)


def test_a_library_without_events_names_no_state(tmp_path: Path) -> None:
    write_json(tmp_path / "library.json", {"format_version": "1", "history": []})
    with pytest.raises(UserError, match="names no state"):
        current(tmp_path)
