"""What was done to a library, and its entries, for the screen."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mace_pl.errors import UserError
from mace_pl.files.screen import screen
from mace_pl.files.versions import STATES, read_state
from mace_pl.library.change import Library
from mace_pl.library.history import STRENGTHS, Event, History
from mace_pl.library.states import moved_of

SHORT = 12  # digits of an id that are shown; undo takes them
EVENTS = ("", "date (UTC)", "action", "targets", "state", "why")
ENTRIES = ("target → anchor", "strength", "added", "why", "moved", "seen", "entry")
BROKEN = ("targets", "target → anchor", "why")  # columns that may be broken, between words, on a narrow screen
LEGEND = """*: the change that made the current state
moved: by what part of their size the refinement has moved a target's keys and values since its training (–: not known)
seen: in its images before and after its own run, at full strength"""


def events_table(folder: Path, history: History) -> Table:
    """What was done, in order; a star stands at the event that made the current state, strengths beside targets."""
    table = _table(f"History of {folder}", EVENTS)
    now = history.made()
    for number, event in enumerate(history.events):
        done = (minute(event.date), event.action, ", ".join(with_strengths(folder, event)), event.state[:SHORT])
        table.add_row("*" if number == now else "", *done, why(event.reason, event.requester))
    return table


def entries_table(library: Library) -> Table:
    """The entries of the current state: since when, why, and how far the refinement has moved."""
    table = _table(f"Entries of state {library.run.folder.name[:SHORT]}", ENTRIES)
    notes, moved, strengths = library.history.notes(), moved_of(library.run), library.members.weights
    for concept in library.run.concepts:
        note, far = notes[concept["target"]], moved[concept["target"]]
        seen = " → ".join(f"{score:.0%}" for score in (note.scores or {}).values())
        strength = f"{strengths.get(concept['target'], 1):g}"
        said = (note.date[:10], why(note.reason, note.requester), "–" if far is None else f"{far:.3f}")
        table.add_row(f"{concept['target']} → {concept['anchor']}", strength, *said, seen, note.content[:SHORT])
    return table


def with_strengths(folder: Path, event: Event) -> list[str]:
    """The targets of an event, with the strength that they have in its state where it is not 1."""
    try:
        state = read_state(folder / STATES / event.state)
    except UserError:  # a damaged state: what was done is known still
        return list(event.targets)
    saved, entries = event.action == STRENGTHS, state["entries"]
    found = []
    for target in event.targets:
        weight = state["weights"].get(target, 1)
        shown = f"{target} {weight:g}" if target in entries and (saved or weight != 1) else target
        found.append(f"{target} left out" if saved and target not in entries else shown)
    return found


def why(reason: str | None, requester: str | None) -> str:
    """The reason, and who asked, in one line."""
    asked = f"by {requester}" if requester else ""
    return "; ".join(part for part in (reason, asked) if part)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    """A table whose dates, ids and figures stay whole."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in BROKEN, overflow="fold")
    return table


def minute(date: str) -> str:
    """A date in UTC without its seconds."""
    return date[:16].replace("T", " ")


def print_log(folder: Path, history: History) -> None:
    """Both tables; the first one of a library too whose current state is damaged, for ``undo``.

    Raises:
        UserError: a file of the current state is not there, or damaged.
    """
    console = screen()
    console.print(events_table(folder, history))
    library = Library.open(str(folder))
    console.print(entries_table(library))
    console.print(LEGEND, highlight=False, soft_wrap=True)
