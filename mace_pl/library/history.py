"""What was done to a library, in order: a list that only grows. Its last event names the current state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json
from mace_pl.files.versions import FORMAT_VERSION, LIBRARY, RESTORE, read_library
from mace_pl.version import __version__

UNDO, STRENGTHS = "undo", "strengths"


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Note:
    """Why an entry is in the library.

    Attributes:
        content: hash of the entry.
        date: when it was added, in UTC.
        reason: free text.
        requester: free text.
        scores: how often the target was seen in its images, ``before`` and ``after`` its own run; None without a judge.
    """

    content: str
    date: str
    reason: str | None = None
    requester: str | None = None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Event:
    """Something that was done.

    Attributes:
        action: ``fit`` or ``fuse`` (the run that became the library), ``add``, ``merge``, ``remove``, ``replace``,
            ``retrain``, ``strengths`` or ``undo``.
        state: id of the state that it left.
        before: the number of the event before it; of ``undo`` that of the event whose state is back. None of the first.
        date: in UTC.
        targets: what was added, removed or replaced.
        reason: free text.
        requester: free text.
        added: the entries that came with it, by target.
        version: of this program.
    """

    action: str
    state: str = ""
    before: int | None = None
    date: str = field(default_factory=now)
    targets: Sequence[str] = ()
    reason: str | None = None
    requester: str | None = None
    added: Mapping[str, Note] = field(default_factory=dict)
    version: str = __version__


@dataclass(frozen=True)
class History:
    """The events of a library; empty of a run that is none yet."""

    events: Sequence[Event] = ()

    @staticmethod
    def load(library: Path) -> History:
        """Read ``library.json``; no events where there is none.

        Raises:
            UserError: it is damaged, or of another format version.
        """
        file = library / LIBRARY
        if not file.is_file():
            return History()
        content = read_library(file)
        try:
            return History([_event(item, number) for number, item in enumerate(content["history"])])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"run: {file} is damaged ({error}). {RESTORE}") from error

    def save(self, library: Path) -> None:
        """Write ``library.json``: the one step by which a change is made."""
        write_json(
            library / LIBRARY, {"format_version": FORMAT_VERSION, "history": [asdict(event) for event in self.events]}
        )

    def then(self, event: Event) -> History:
        """With one more event, which follows the last one."""
        last = len(self.events) - 1 if self.events else None
        return History([*self.events, event if event.before is not None else replace(event, before=last)])

    def made(self, number: int | None = None) -> int:
        """The number of the event that made the state of an event, the last one when None: not that of an undo."""
        found = len(self.events) - 1 if number is None else number
        while self.events[found].action == UNDO:
            before = self.events[found].before
            assert before is not None
            found = before
        return found

    def earlier(self, state: str | None) -> int:
        """The number of the event to which ``undo`` goes back.

        Args:
            state: beginning of a state's id; the state before the current one when None.

        Raises:
            UserError: there is none, or the beginning is that of several.
        """
        if state == "":
            raise UserError("to is empty. Give the beginning of a state's id, as log lists them.")
        if state is None:
            before = self.events[self.made()].before
            if before is None:
                raise UserError("run: nothing is left to undo: this is the first state. log lists all of them.")
            return self.made(before)
        known = {event.state: number for number, event in enumerate(self.events) if event.action != UNDO}
        found = [number for name, number in known.items() if name.startswith(state)]
        if len(found) != 1:
            many = "several states begin with it" if found else "no state of this library begins with it"
            raise UserError(f"to={state}: {many}. Choose one that log lists.")
        if self.events[found[0]].state == self.events[-1].state:
            raise UserError(f"to={state}: this is the current state already. Choose another one that log lists.")
        return found[0]

    def scores(self, contents: Mapping[str, str]) -> dict[str, Mapping[str, float]]:
        """Of each target, ``before`` and ``after`` of its note, where it was judged.

        Args:
            contents: hash of the entry by target, of any state.
        """
        noted = [note for event in self.events for note in event.added.values() if note.scores]
        known = {note.content: note.scores for note in noted if note.scores}
        return {target: known[content] for target, content in contents.items() if content in known}

    def notes(self) -> dict[str, Note]:
        """By target, why an entry was last added on the way to the current state; of those that were removed too."""
        notes: dict[str, Note] = {}
        number: int | None = self.made() if self.events else None
        while number is not None:
            notes = {**self.events[number].added, **notes}
            before = self.events[number].before
            number = None if before is None else self.made(before)
        return notes


def _event(item: Mapping[str, Any], number: int) -> Event:
    """An event that was read; ``number`` is its place in the history.

    Raises:
        KeyError, TypeError, AttributeError or ValueError: it is damaged.
    """
    added = {target: Note(**note) for target, note in item["added"].items()}
    event = Event(**{**item, "added": added, "targets": tuple(item["targets"])})
    texts = [event.action, event.state, event.date, event.version, *event.targets]
    texts += [text for note in added.values() for text in (note.content, note.date)]
    free = [event.reason, event.requester, *(text for note in added.values() for text in (note.reason, note.requester))]
    texts += [text for text in free if text is not None]
    scores = [score for note in added.values() for score in (note.scores or {}).values()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"event {number} has a value that is no text")
    if not all(isinstance(score, int | float) for score in scores):
        raise ValueError(f"event {number} has a score that is no number")
    follows = event.before is None if number == 0 else type(event.before) is int and 0 <= event.before < number
    if not follows:
        raise ValueError(f"event {number} follows event {event.before}")
    return event
