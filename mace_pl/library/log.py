"""What was done to a library, and its entries, for the screen."""

from __future__ import annotations

from rich.table import Table

from mace_pl.files.screen import screen
from mace_pl.library.change import Library
from mace_pl.library.states import moved_of

SHORT = 12  # digits of an id that are shown; undo takes them
WHOLE = ("now", "date (UTC)", "added (UTC)", "action", "state", "moved", "entry")  # columns that are not broken
EVENTS = ("now", "date (UTC)", "action", "targets", "state", "reason", "requester")
ENTRIES = ("target", "anchor", "added (UTC)", "reason", "requester", "moved", "seen", "entry")
MOVED = "moved: by what part of their size the refinement has moved a target's keys and values since its training"


def events_table(library: Library) -> Table:
    """What was done, in order; a star stands at the event that made the current state."""
    table = Table(title=f"History of {library.folder}")
    for column in EVENTS:
        table.add_column(column, overflow="fold", no_wrap=column in WHOLE)
    now = library.history.made()
    for number, event in enumerate(library.history.events):
        done = (minute(event.date), event.action, ", ".join(event.targets), event.state[:SHORT])
        table.add_row("*" if number == now else "", *done, event.reason or "", event.requester or "")
    return table


def entries_table(library: Library) -> Table:
    """The entries of the current state: since when, why, and how far the refinement has moved."""
    table = Table(title=f"Entries of state {library.run.folder.name[:SHORT]}")
    for column in ENTRIES:
        table.add_column(column, overflow="fold", no_wrap=column in WHOLE)
    notes, moved = library.history.notes(), moved_of(library.run)
    for concept in library.run.concepts:
        note, far = notes[concept["target"]], moved[concept["target"]]
        seen = " → ".join(f"{score:.0%}" for score in (note.scores or {}).values())
        said = (minute(note.date), note.reason or "", note.requester or "", "–" if far is None else f"{far:.3f}")
        table.add_row(concept["target"], concept["anchor"], *said, seen, note.content[:SHORT])
    return table


def minute(date: str) -> str:
    """A date in UTC without its seconds."""
    return date[:16].replace("T", " ")


def print_log(library: Library) -> None:
    """Both tables."""
    console = screen()
    console.print(events_table(library))
    console.print(entries_table(library))
    console.print(MOVED, highlight=False, soft_wrap=True)
