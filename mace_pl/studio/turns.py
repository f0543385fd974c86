"""One user at a time has the pipeline; what a user asks anew ends what that user asked before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SETTLE = 0.15  # seconds in which a slider may move on before anything is computed


class Cancelled(Exception):
    """The user has cancelled this, or asked for something else."""


class Turns:
    """Who may use the pipeline."""

    def __init__(self) -> None:
        self._pipeline = threading.Lock()
        self._asked: dict[str, threading.Event] = {}
        self._changing = threading.Lock()

    @contextmanager
    def turn(self, who: str, settle: float = 0.0) -> Iterator[Callable[[], None]]:
        """Wait until no other user has the pipeline, and have it within the context.

        Args:
            who: the user; an earlier turn of the same one is cancelled.
            settle: seconds to wait for a newer turn of the same user first.

        Yields:
            A function to call now and then, which raises once the turn is cancelled.

        Raises:
            Cancelled: before or within the context.
        """
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise Cancelled

        with self._changing:
            self._end(who)
            self._asked[who] = stop
        try:
            stop.wait(settle)
            check()
            with self._pipeline:
                check()
                yield check
        finally:
            with self._changing:
                if self._asked.get(who) is stop:
                    del self._asked[who]

    def cancel(self, who: str) -> None:
        """End what a user has asked for, if anything."""
        with self._changing:
            self._end(who)

    def _end(self, who: str) -> None:
        with suppress(KeyError):
            self._asked[who].set()
