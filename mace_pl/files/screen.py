"""The console of everything that is printed: names are shown as they are."""

from __future__ import annotations

from rich.console import Console


def screen() -> Console:
    """A console that takes neither ``[sks]`` for markup nor ``:ship:`` for a picture."""
    return Console(markup=False, emoji=False)
