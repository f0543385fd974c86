"""One command at a time writes a library."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json

LOCK = ".lock"
WRITER = ".writer.json"  # who holds the lock, for messages; what counts is the lock


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the context no other command writes the library.

    The operating system holds the lock and drops it with the process: a killed one leaves no lock behind.

    Args:
        folder: of the library, or of the run that becomes one.

    Raises:
        UserError: another process writes it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"run: {_writer(folder)} is writing {folder}. Wait until it has ended.") from None
    except OSError as error:
        raise UserError(f"run: {folder} cannot be written ({error.strerror or error}). Copy it elsewhere.") from error
    try:
        write_json(folder / WRITER, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        (folder / WRITER).unlink(missing_ok=True)
        lock.release()


def _writer(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there yet, or not any more
        found = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']}"
    return "another process"
