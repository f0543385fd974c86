"""An output that exists is refused, of ``fit`` before its libraries are imported, which takes seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve

LONGEST = 200  # bytes of an output's name, of 255 of a file name
NO_RUN = ("-h", "--help", "--print_config")  # options with which nothing is run


def only_asks(args: Sequence[str]) -> bool:
    """Whether words behind a command ask for its help or its configuration alone, or say nothing."""
    return not args or any(word.startswith(NO_RUN) for word in args)


def refuse_taken(args: Sequence[str]) -> None:
    """Refuse an ``output_dir`` of ``fit`` that exists; whatever else is wrong is left to the parser.

    Args:
        args: the words behind ``fit``.

    Raises:
        UserError: it exists and is not to be overwritten.
    """
    if only_asks(args):
        return
    settings: dict[str, Any] = {"output_dir": None, "overwrite": False}
    name = "run"
    for place, word in enumerate(args):
        option, given, value = word.partition("=")
        value = value if given else next(iter(args[place + 1 :]), "")
        if option in ("-c", "--config"):
            name = Path(value).stem
            settings |= {key: found for key, found in _content(resolve(value)).items() if key in settings}
        elif option.removeprefix("--") in settings:
            settings[option.removeprefix("--")] = value
    folder = Path(str(settings["output_dir"] or default_output(name)))
    if str(settings["overwrite"]).lower() == "false":
        refuse_existing(folder)


def default_output(name: str) -> str:
    """Where a run is written that names no folder: by its last configuration."""
    return f"checkpoints/erased/{name}"


def refuse_existing(path: Path, setting: str = "output_dir") -> None:
    """Refuse an output that exists and is not empty.

    Raises:
        UserError: it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        flag = setting.replace(setting.rpartition(".")[2], "overwrite")  # beside the setting
        raise UserError(f"{setting}: {path} exists. Choose another --{setting}, or pass --{flag} true.")


def refuse_long(path: Path, setting: str = "output_dir") -> None:
    """Refuse an output whose name leaves no room in a file name for what is put around it.

    Raises:
        UserError: it does.
    """
    size = len(os.fsencode(path.name))
    if size > LONGEST:
        raise UserError(
            f"{setting}: {path.name[:20]}… is a name of {size} bytes, which leave no room for what is put around it. "
            f"Choose a shorter --{setting}, of at most {LONGEST}."
        )


def refuse_unwritable(path: Path, setting: str = "output_dir") -> None:
    """Refuse a place that cannot be written: permissions, a read-only disk, no disk at all, a file for a folder.

    Raises:
        UserError: naming it, and why.
    """
    there = path
    while not there.exists():
        there = there.parent
    if not there.is_dir() and there != path:
        raise UserError(f"{setting}: {path} cannot be written, {there} is a file. Choose another folder.")
    try:
        tempfile.TemporaryFile(dir=there if there.is_dir() else there.parent).close()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be written ({error.strerror}). Choose another folder.") from error


def _content(file: Path) -> dict[str, Any]:
    """The settings of a file; none where it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
