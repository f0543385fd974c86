"""The console of everything that is printed: names are shown as they are."""

from __future__ import annotations

import io
import sys

from rich.console import Console


def screen() -> Console:
    """A console that takes neither ``[sks]`` for markup nor ``:ship:`` for an image."""
    return Console(markup=False, emoji=False)


def show_anything() -> None:
    """Let a console that is not UTF-8 show what it has no characters for as escapes, where it would end the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")
