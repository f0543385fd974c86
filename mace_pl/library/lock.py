"""One command at a time writes a library."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json
from mace_pl.files.versions import ADDING, ENTRIES, LIBRARY, REFINEMENTS, STATES
from mace_pl.files.writer import LOCK, WRITER, writer


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
        raise UserError(f"run: {writer(folder)} is writing {folder}. Wait until it has ended.") from None
    except OSError as error:
        raise UserError(f"run: {folder} cannot be written ({error.strerror or error}). Copy it elsewhere.") from error
    try:
        if (folder / WRITER).is_dir():
            raise UserError(f"run: {folder / WRITER} is a folder, where a file is written. Move it away.")
        write_json(folder / WRITER, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with suppress(OSError):
            (folder / WRITER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """:func:`writing`; a run that has not become a library by its end is what it was, but for what was trained.

    Args:
        folder: of the library, or of the run that becomes one.

    Raises:
        UserError: as :func:`writing`.
    """
    with writing(folder):
        new = [place for name in (STATES, ENTRIES, REFINEMENTS) if not (place := folder / name).exists()]
        try:
            yield
        finally:
            for place in new if not (folder / LIBRARY).exists() else ():
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # not there, or it holds what was trained
                (folder / ADDING).rmdir()
