"""One user at a time has the pipeline; what a user asks anew ends what that user asked before.

What a browser asks for need not reach us in the order in which it was asked: each request is answered by a thread of
its own. Each therefore has a number, counted in the browser, and an older one that comes late is not worked on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]  # steps that are done, and all of them
SETTLE = 0.15  # seconds in which a slider may move on before anything is computed


class Cancelled(Exception):
    """The user has cancelled this, or asked for something else."""


@dataclass
class _User:
    """What a browser has asked for.

    Attributes:
        newest: number of the newest request, by part of the page.
        cancelled: number of the newest that has cancelled all before it.
        running: the numbers and stops of those that wait or are worked on, by part.
    """

    newest: dict[str, int] = field(default_factory=dict)
    cancelled: int = 0
    running: dict[str, tuple[int, threading.Event]] = field(default_factory=dict)

    def stop(self, part: str, number: int) -> None:
        """End what a part has asked for before a number."""
        if part in self.running and self.running[part][0] <= number:
            self.running[part][1].set()


class Turns:
    """Who may use the pipeline."""

    def __init__(self) -> None:
        self._pipeline = threading.Lock()
        self._users: dict[str, _User] = {}
        self._changing = threading.Lock()

    @contextmanager
    def turn(self, who: str, part: str, number: int = 0, settle: float = 0.0) -> Iterator[Callable[[], None]]:
        """Wait until no other user has the pipeline, and have it within the context.

        Args:
            who: the user.
            part: of the page; an earlier turn of the same user and part is cancelled.
            number: what the user has asked for is numbered in this order; of two of one number the later counts.
            settle: seconds to wait for a newer turn of the same user and part first.

        Yields:
            A function to call now and then, which raises once the turn is cancelled.

        Raises:
            Cancelled: before or within the context.
        """
        stop = self._begin(who, part, number)

        def check() -> None:
            if stop.is_set():
                raise Cancelled

        try:
            stop.wait(settle)
            check()
            with self._pipeline:
                check()
                yield check
        finally:
            with self._changing:
                user = self._users.get(who)
                if user is not None and user.running.get(part) == (number, stop):
                    del user.running[part]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the pipeline within the context, for what is not cancelled."""
        with self._pipeline:
            yield

    def cancel(self, who: str, number: int) -> None:
        """End all that a user has asked for before a number, if anything, also what comes late."""
        with self._changing:
            user = self._users.setdefault(who, _User())
            user.cancelled = max(user.cancelled, number)
            for part in user.running:
                user.stop(part, number)

    def leave(self, who: str) -> None:
        """End all that a user has asked for: nobody waits for it any more."""
        with self._changing:
            user = self._users.pop(who, _User())
            for _, stop in user.running.values():
                stop.set()

    def _begin(self, who: str, part: str, number: int) -> threading.Event:
        """Note what is asked for, and end what was asked for before.

        Raises:
            Cancelled: something newer has come already.
        """
        with self._changing:
            user = self._users.setdefault(who, _User())
            if number < max(user.cancelled, user.newest.get(part, number)):
                raise Cancelled
            user.stop(part, number)
            stop = threading.Event()
            user.newest[part], user.running[part] = number, (number, stop)
            return stop


def counted(check: Callable[[], None], progress: Progress | None, whole: int) -> Callable[[], None]:
    """What is called after each step of a turn: it ends the turn where that is cancelled, and says how far it is.

    Args:
        check: that of the turn.
        progress: told the steps that are done, and all of them.
        whole: the number of steps.
    """
    done = 0

    def step() -> None:
        nonlocal done
        check()
        done += 1
        if progress is not None:
            progress(min(done, whole), whole)

    return step
