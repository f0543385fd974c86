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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError

LIBRARY = "library.json"
STATE = "state.json"
STATES = "states"
ENTRIES = "entries"
REFINEMENTS = "refinements"
ADDING = "adding"
FORMAT_VERSION = "1"  # of every file of this project that has one
RESTORE = "Restore it from a copy of the library."
BACK = "Restore it from a copy of the library, or bring another state back by undo --to with an id that log lists."


def mend(file: Path, otherwise: str = RESTORE) -> str:
    """What to do about a file that is not there or damaged: in a library it cannot be made again."""
    for folder in file.parents:
        if folder.name in (STATES, ENTRIES, REFINEMENTS) and (folder.parent / LIBRARY).is_file():
            return BACK if folder.name == STATES else RESTORE
    return otherwise


def read_json(file: Path) -> dict[str, Any]:
    """A file of a library.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"run: {file} cannot be read ({error}). {mend(file)}") from error
    if not isinstance(content, dict):
        raise UserError(f"run: {file} is no file of a library. {mend(file)}")
    return content


def read_library(file: Path) -> dict[str, Any]:
    """``library.json``.

    Raises:
        UserError: it is damaged, or of another format version.
    """
    content = read_json(file)
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"run: {file} has format version {content.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION!r}. Use the release that wrote it."
        )
    return content


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a state: its ``entries``, ``weights`` and ``moved``, all by target.

    Raises:
        UserError: it is damaged.
    """
    content = read_json(folder / STATE)
    parts = [content.get(name) for name in ("entries", "weights", "moved")]
    whole = all(isinstance(part, dict) for part in parts) and parts[0]
    if not whole or not all(isinstance(name, str) for name in content["entries"].values()):
        raise UserError(f"run: {folder / STATE} is damaged: it does not name its entries. {mend(folder / STATE)}")
    return content


def current(folder: Path) -> Path:
    """The folder of a library's current state, or of one that is named by the beginning of its id; else the folder.

    Raises:
        UserError: ``library.json`` is damaged, or no state of the library begins so, or several do.
    """
    file = folder / LIBRARY
    if not file.is_file():
        return _by_beginning(folder)
    content = read_library(file)
    try:
        return folder / STATES / str(content["history"][-1]["state"])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"run: {file} names no state. Restore the file from a copy of the library.") from error


def _by_beginning(folder: Path) -> Path:
    """The state of a library whose id begins with the folder's name, as log shows it."""
    around = folder.parent.parent
    if folder.exists() or folder.parent.name != STATES or not (around / LIBRARY).is_file():
        return folder
    known = {str(event.get("state")) for event in read_library(around / LIBRARY)["history"]}
    found = [name for name in sorted(known) if name.startswith(folder.name)]
    if len(found) != 1:
        many = "several states begin" if found else "no state begins"
        raise UserError(f"run={folder}: {many} with {folder.name} in {around}. Choose one that log lists.")
    return folder.with_name(found[0])


def library_of(folder: Path) -> Path | None:
    """The library that a state's folder lies in, also where the state is damaged; None of another folder."""
    around = folder.parent.parent
    inside = folder.parent.name == STATES and (around / LIBRARY).is_file()
    return around if inside or (folder / STATE).is_file() else None


def entry_folders(folder: Path, made: Mapping[str, Any]) -> dict[str, Path]:
    """Where sums and LoRA of each target of a state lie; empty of a folder that is no state.

    Args:
        folder: of the state.
        made: what its edit says of itself.

    Raises:
        UserError: ``state.json`` is damaged, or not of the state's targets.
    """
    library = library_of(folder)
    if library is None:
        return {}
    entries = read_state(folder)["entries"]
    if set(entries) != {concept["target"] for concept in made.get("concepts", [])}:
        raise UserError(f"run: {folder / STATE} does not name the targets of the edit. {mend(folder / STATE)}")
    return {target: library / ENTRIES / content for target, content in entries.items()}
