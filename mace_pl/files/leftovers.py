"""What a process that was killed left of an output: known by its name, and removed by the next run of that output."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

TAG = r"(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}"
#: what lies aside while it is written, and what lay in its place until then
LEFTOVER = re.compile(rf"\.(?P<output>.*)\.{TAG}\.(?P<kind>partial|old)")
CLOCK = 2.0  # seconds by which the beginning of a process may be told too late
DAY = 86400.0  # seconds after which a file of another machine is no longer being written


def tag() -> str:
    """A name that no other has, which says what process gave it."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def beside(path: Path, kind: str) -> Path:
    """A new place beside an output: ``partial``, to write it aside, or ``old``, for what it replaces."""
    return path.with_name(f".{path.name}.{tag()}.{kind}")


def clear_leftovers(path: Path) -> None:
    """Remove what processes that are no more left of one output; what they had put away of it comes back."""
    _clear(left for left in _leftovers(path.parent) if left[1]["output"] == path.name)


def clear_folder(folder: Path) -> None:
    """Remove what processes that are no more left of any output in a folder."""
    _clear(_leftovers(folder))


def ended(found: re.Match[str], path: Path) -> bool:
    """Whether the process of a tag ran on this machine and is no more.

    One that nobody has waited for is no more, nor is one whose number another has, which began after the file.
    """
    if found["machine"] != _machine():
        return False
    try:
        process = psutil.Process(int(found["process"]))
        other = process.create_time() > path.lstat().st_mtime + CLOCK
        return other or bool(process.status() == psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, OSError):
        return True


def _leftovers(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """What lies in a folder of processes that are no more, or of another machine since a day."""
    with contextlib.suppress(OSError):  # no such folder, or none that may be read
        for entry in list(os.scandir(folder)):
            found = LEFTOVER.fullmatch(entry.name)
            if found and (ended(found, Path(entry.path)) or _old(Path(entry.path))):
                yield Path(entry.path), found


def _clear(leftovers: Iterator[tuple[Path, re.Match[str]]]) -> None:
    for path, found in leftovers:
        output = path.with_name(found["output"])
        with contextlib.suppress(OSError):  # another rank was here first
            if found["kind"] == "old" and not os.path.lexists(output):
                path.rename(output)  # killed between two renames: as if it had not been replaced
            else:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as it goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > DAY


def _machine() -> str:
    """Eight digits of this machine; of a container of its own, where processes have numbers of their own."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # another system than Linux
        numbers = ""
    return hashlib.sha256(f"{platform.node()} {numbers}".encode()).hexdigest()[:8]
