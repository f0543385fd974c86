"""The console of everything that is printed: names are shown as they are."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

INSTALLED = "mace-erase"  # the command of the installed package


def program() -> str:
    """What the erasing program was called as: ``erase.py``, or the command of the installed package."""
    called = Path(sys.argv[0])
    return called.name if called.stem == INSTALLED else "erase.py"


def screen() -> Console:
    """A console that takes neither ``[sks]`` for markup nor ``:ship:`` for an image."""
    return Console(markup=False, emoji=False)


def show_anything() -> None:
    """Let a console that is not UTF-8 show what it has no characters for as escapes, where it would end the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")
