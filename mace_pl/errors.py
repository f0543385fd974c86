"""The error that a user can mend, which a command shows as one line, and the nearest name for one that is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """A setting, file or option that cannot be used; the message names it and says what to do.

    Only this error becomes one line on the command line. Whatever else is raised is a fault of the program and keeps
    its traceback.
    """


class Stopped(Exception):  # noqa: N818 - no error
    """A command has done what it was asked, before its Trainer has done all; the message says what."""


class Advice(UserWarning):
    """A warning to a user of a command, whose terminal shows it; warnings of other kinds go into the run's log."""


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Let messages call settings as a command does, which takes under names of its own what is set of ``fit``.

    Args:
        names: of the command, by those of ``fit``.
    """
    try:
        yield
    except UserError as error:
        said = str(error)
        for name, own in names.items():
            said = said.replace(name, own)
        raise UserError(said) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that tells the known name next to a misspelt one; empty where none is near.

    Of keys with dots, as ``model.lr``, those of the same parent count by what follows it, then those of another parent
    that end alike.
    """
    names = list(known)
    parent, _, last = name.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in names if key.rpartition(".")[0] == parent}
    matches = [beside[match] for match in difflib.get_close_matches(last, list(beside), n=1)]
    matches += [key for key in names if key.rpartition(".")[2] == last]
    if not beside:
        matches += difflib.get_close_matches(name, names, n=1)
    return f" The nearest that exists is {matches[0]}." if matches else ""


def install(extra: str) -> str:
    """The sentence that tells how an extra of this package is installed, in the range that it takes.

    It holds for a clone and for an installed package: pip finds the one that is there, and adds what the extra names.
    """
    return f'Run pip install "mace-pl[{extra}]".'


def one_line(error: BaseException) -> str:
    """The message of another library's error, without its line breaks."""
    return " ".join(str(error).split())
