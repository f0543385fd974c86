"""Who writes a library: a lock that the operating system drops with its process, and a note for messages."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mace_pl.errors import UserError

LOCK = ".lock"
WRITER = ".writer.json"  # who holds the lock, for messages; what counts is the lock


def refuse_writing(folder: Path, setting: str) -> None:
    """Refuse a folder that a command makes a library, or changes as one, at this moment.

    Raises:
        UserError: naming its process.
    """
    if (folder / LOCK).is_file():
        with suppress(OSError):  # it cannot be written: said by those who write it
            try:
                FileLock(folder / LOCK, timeout=0).acquire().lock.release()
            except Timeout:
                raise UserError(f"{setting}: {writer(folder)} is writing {folder}. Wait until it has ended.") from None


def writer(folder: Path) -> str:
    """The process that holds the lock, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there yet, or not any more
        found = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']}"
    return "another process"
