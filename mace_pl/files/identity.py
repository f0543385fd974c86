"""What makes two runs the same: a hash over inputs, and never over computed numbers.

Sums differ in their last bit from one number of threads to another and from device to device; settings, texts and
files do not. Whatever an earlier run left is taken by this one rule: LoRAs in training, partial statistics, images of
targets, their masks, the images of ``predict``. The inputs lie beside what was made from them, by names that people
know, so that a run can say in which of them it differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mace_pl.files.screen import screen

INPUTS = "settings.json"  # in a folder of images or masks: what they were made from


def identity(inputs: Mapping[str, Any]) -> str:
    """SHA-256 over values that JSON can hold, whatever the order of their keys."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def differing(actual: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """The names under which two descriptions differ; none where they have one identity."""

    def own(content: Mapping[str, Any], name: str) -> str:
        return identity({name: content[name]} if name in content else {})

    return [name for name in {**inputs, **actual} if own(actual, name) != own(inputs, name)]


def not_taken(what: str, path: Path, why: Iterable[str]) -> None:
    """Say that what lies at a place is not used again, and which inputs are why."""
    screen().print(f"Not used again: {what} in {path}: other {', '.join(why)}.", highlight=False)


def made_from(folder: Path, inputs: Mapping[str, Any], what: str = "") -> bool:
    """Whether a folder was filled from these inputs.

    Args:
        folder: the folder; :func:`note_inputs` wrote its ``settings.json``.
        inputs: all that its content depends on.
        what: it holds, for the log, which says why it is not taken; no line when empty.
    """
    file = folder / INPUTS
    if not file.is_file():
        return False
    try:
        stored: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # damaged
        stored = None
    why = differing(stored, inputs) if isinstance(stored, dict) else [INPUTS]
    if why and what:
        not_taken(what, folder, why)
    return not why


def note_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write ``settings.json`` into a folder that is being made."""
    (folder / INPUTS).write_text(json.dumps(inputs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
