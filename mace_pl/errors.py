"""The error that a user can mend, which a command shows as one line, and the nearest name for one that is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A setting, file or option that cannot be used; the message names it and says what to do.

    Only this error becomes one line on the command line. Whatever else is raised is a fault of the program and keeps
    its traceback.
    """


class Advice(UserWarning):
    """A warning to a user of a command, whose terminal shows it; warnings of other kinds go into the run's log."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that tells the known name next to a misspelt one; empty where none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" The nearest that exists is {matches[0]}." if matches else ""


def one_line(error: BaseException) -> str:
    """The message of another library's error, without its line breaks."""
    return " ".join(str(error).split())
