"""Which files of a folder the project wrote: no other is ever removed with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mace_pl.errors import UserError
from mace_pl.files.leftovers import LEFTOVER
from mace_pl.files.paths import resolve

RECORD = ".written.json"  # in a folder that was written as a whole: the files that came with it
LOG = "run.log"  # it is written last
#: what is written later into a folder of images, or was before folders had a record
IMAGES = re.compile(
    r"(own/)?contact_sheet\.png|(own/)?((attention_)?masks/)?settings\.json|(images|(attention_)?masks)/\d{3}\.png"
)


def write_record(folder: Path) -> None:
    """Note all files that a new folder holds."""
    files = sorted(path.relative_to(folder).as_posix() for path in files_of(folder))
    (folder / RECORD).write_text(json.dumps(files, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def foreign_file(folder: Path, known: re.Pattern[str] | None = None) -> Path | None:
    """A file in the folder that the project did not write; None where there is none.

    Args:
        folder: what is to be replaced.
        known: paths in it that are the project's without a record.
    """
    files = list(files_of(folder))
    around = [parent / RECORD for parent in folder.parents]  # a run's record names the files of its folders too
    records = [record for record in (*files, *around) if record.name == RECORD and record.is_file()]
    written = {path for record in records for path in _recorded(record)}
    for path in files:
        leftover = any(LEFTOVER.fullmatch(part) for part in path.relative_to(folder).parts)
        by_name = known is not None and known.fullmatch(path.relative_to(folder).as_posix())
        ours = path in written or leftover or by_name or path.name in (RECORD, LOG)
        if not (ours or _marked(path)):
            return path
    return None


def refuse_foreign(folder: Path, setting: str, known: re.Pattern[str] | None = None) -> None:
    """Refuse to replace a folder that holds a file which the project did not write.

    Raises:
        UserError: naming the file.
    """
    foreign = foreign_file(folder, known)
    if foreign is not None:
        raise UserError(
            f"{setting}: {folder} holds {foreign.relative_to(folder).as_posix()}, which this project did not write: "
            f"it is not replaced. Move that file or the folder away, or choose another place."
        )


def refuse_inputs(output: Path, inputs: Iterable[tuple[str, str | Path | None]], setting: str = "output_dir") -> None:
    """Refuse to replace a folder that holds what the command reads: it would be lost with it.

    Args:
        output: what is written.
        inputs: what each is, as in "base model", and its place; None and what lies nowhere (a hub id) hold nothing.
        setting: the option that named the output.

    Raises:
        UserError: naming the input.
    """
    for what, place in inputs:
        if place is not None and resolve(place).resolve().is_relative_to(output.resolve()):
            raise UserError(f"{setting}={output} holds the {what} ({place}). Choose another --{setting}.")


def files_of(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder itself; links are not followed."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def _recorded(record: Path) -> Iterator[Path]:
    try:
        names = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged: its files are taken for others'
        return iter(())
    return (record.parent / name for name in names if isinstance(name, str))


def _marked(path: Path) -> bool:
    """Whether a safetensors file says that this project wrote it."""
    if path.suffix != ".safetensors" or path.is_symlink():
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return "mace_pl" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
