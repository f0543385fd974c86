"""A library: a run's folder with all its states. ``library.json`` says which is the current one.

======================================  ===============================================================================
``library.json``                        what was done, in order; the last event names the current state
``states/<id>/``                        a state: a run's folder, and ``state.json``, which names its entries by content
``entries/<hash>/``                     sums and LoRA of one concept, and ``entry.json``, what it was made from
``refinements/<hash>.safetensors``      an edit of stage 1, on which LoRAs were trained
``adding/``                             what a command that has not ended is training
======================================  ===============================================================================

Nothing below ``states``, ``entries`` and ``refinements`` is written twice, and ``library.json`` is renamed into its
place when all that it names is there: whenever a command is killed, the library is in its last state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError

LIBRARY = "library.json"
STATE = "state.json"
STATES = "states"
ENTRIES = "entries"
REFINEMENTS = "refinements"
ADDING = "adding"


def read_json(file: Path) -> dict[str, Any]:
    """A file of a library.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"run: {file} cannot be read ({error}). Restore it from a copy of the library.") from error
    if not isinstance(content, dict):
        raise UserError(f"run: {file} is no file of a library. Restore it from a copy of the library.")
    return content


def current(folder: Path) -> Path:
    """The folder of a library's current state; the folder itself where it is no library.

    Raises:
        UserError: ``library.json`` is damaged.
    """
    file = folder / LIBRARY
    if not file.is_file():
        return folder
    content = read_json(file)
    try:
        return folder / STATES / str(content["history"][-1]["state"])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"run: {file} names no state. Restore the file from a copy of the library.") from error


def library_of(folder: Path) -> Path | None:
    """The library that a state's folder lies in; None of another folder."""
    return folder.parent.parent if (folder / STATE).is_file() else None


def entry_folders(folder: Path) -> dict[str, Path]:
    """Where sums and LoRA of each target of a state lie; empty of a folder that is no state."""
    library = library_of(folder)
    if library is None:
        return {}
    entries = read_json(folder / STATE).get("entries", {})
    return {target: library / ENTRIES / content for target, content in entries.items()}
