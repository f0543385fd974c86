"""What an output may replace: files that the project wrote, and never what a command reads, a library or another run.

One rule for all commands. A folder is replaced where the project wrote all that it holds, and where no library and no
other run lies in it; one of a target's images holds images and masks alone. A file of weights is replaced where it says
that the project wrote it. No output holds an input, or lies in one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mace_pl.errors import UserError
from mace_pl.files.leftovers import LEFTOVER
from mace_pl.files.paths import resolve
from mace_pl.files.versions import LIBRARY, STATE, STATES
from mace_pl.files.writer import LOCK, WRITER, refuse_writing

RECORD = ".written.json"  # in a folder that was written as a whole: the files that came with it
LOG = "run.log"  # it is written last
#: what is written later into a folder of images, or was before folders had a record
IMAGES = re.compile(
    r"(own/)?contact_sheet\.png|(own/)?((attention_)?masks/)?settings\.json|(images|(attention_)?masks)/\d{3}\.png"
)
#: masks of the user's own images bear their names; these are the project's where a record says so
MASKS = re.compile(r"(own/)?(attention_)?masks/[^/]+\.png")
EDITS = ("edit.safetensors", "refined.safetensors")  # one of them is in a run's folder
SHARED = "folder of data.pictures"  # many runs write into it, each target a folder of its own


def write_record(folder: Path) -> None:
    """Note all files that a new folder holds; the record of another folder, taken over as a link, stays as it is."""
    files = sorted(path.relative_to(folder).as_posix() for path in files_of(folder))
    (folder / RECORD).unlink(missing_ok=True)
    (folder / RECORD).write_text(json.dumps(files, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def foreign_file(folder: Path, known: re.Pattern[str] | None = None) -> Path | None:
    """A file in the folder that the project did not write; None where there is none.

    Args:
        folder: what is to be replaced.
        known: paths in it that are the project's without a record.
    """
    written = _written(folder)
    for path in files_of(folder):
        by_name = known is not None and known.fullmatch(path.relative_to(folder).as_posix())
        ours = path in written or _left(path, folder) or by_name or path.name in (RECORD, LOG, LOCK, WRITER)
        if not (ours or _marked(path)):
            return path
    return None


def refuse_foreign(folder: Path, setting: str, known: re.Pattern[str] | None = None) -> None:
    """Refuse to replace a folder that holds a file which the project did not write, a library or another run.

    Raises:
        UserError: naming the file, the library or the run.
    """
    refuse_writing(folder, setting)
    _refuse_runs(folder, setting)
    foreign = foreign_file(folder, known)
    if foreign is not None:
        raise UserError(
            f"{setting}: {folder} holds {foreign.relative_to(folder).as_posix()}, which this project did not write: "
            f"it is not replaced. Move that file or the folder away, or choose another place."
        )


def refuse_other_images(folder: Path, setting: str = "data.pictures") -> None:
    """Refuse to replace a folder of a target's images that holds anything but images and masks of the project.

    Raises:
        UserError: naming what it is or holds.
    """
    _refuse_runs(folder, setting)
    written = _written(folder)
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        known = IMAGES.fullmatch(name) or path.name == RECORD or (path in written and MASKS.fullmatch(name))
        if not known and not _left(path, folder):
            raise UserError(
                f"{setting}: {folder} holds {name}, which is no image of a target that this project generated: it is "
                f"not replaced. Choose another --{setting}, or move the folder away."
            )


def refuse_inside_run(folder: Path, setting: str) -> None:
    """Refuse a folder that is a run or a library, or lies in one.

    Raises:
        UserError: naming it.
    """
    place = folder.resolve()
    for around in (place, *place.parents):
        if what := _what(around):
            raise UserError(f"{setting}={folder} lies in the {what} {around.name}. Choose another --{setting}.")


def refuse_file(path: Path, setting: str) -> None:
    """Refuse to replace a file of weights that another program wrote.

    Raises:
        UserError: naming it.
    """
    if path.suffix == ".safetensors" and not _marked(path):
        raise UserError(
            f"{setting}: {path} was not written by this project: it is not replaced. Choose another --{setting}."
        )


def refuse_inputs(output: Path, inputs: Iterable[tuple[str, str | Path | None]], setting: str = "output_dir") -> None:
    """Refuse an output that holds what the command reads, which would be lost with it, or that lies in it.

    Args:
        output: what is written.
        inputs: what each is, as in "base model", and its place; None and what lies nowhere (a hub id) hold nothing.
        setting: the option that named the output.

    Raises:
        UserError: naming the input.
    """
    given = list(inputs)
    for what, place in given:
        if place is not None and resolve(place).resolve().is_relative_to(output.resolve()):
            verb = "is" if resolve(place).resolve() == output.resolve() else "holds"
            raise UserError(f"{setting}={output} {verb} the {what} ({place}). Choose another --{setting}.")
    refuse_inside(output, given, setting)


def refuse_files(outputs: Iterable[Path], files: Iterable[tuple[str, Any]], setting: str = "output_dir") -> None:
    """Refuse files that would replace one which the command reads.

    Args:
        outputs: what is written.
        files: what each is, as in "data.names", and what was given; what is no path of a file holds nothing.
        setting: the option that named the outputs.

    Raises:
        UserError: naming the file.
    """
    places = {output.resolve() for output in outputs}
    for what, given in files:
        if isinstance(given, str | Path) and resolve(given).resolve() in places:
            raise UserError(f"{setting} would replace {given}, which is read as {what}. Choose another --{setting}.")


def refuse_inside(output: Path, inputs: Iterable[tuple[str, str | Path | None]], setting: str) -> None:
    """Refuse an output in a folder that the command reads; see :func:`refuse_inputs`.

    Raises:
        UserError: naming the input.
    """
    for what, place in inputs:
        if place is not None and what != SHARED and output.resolve().is_relative_to(resolve(place).resolve()):
            raise UserError(f"{setting}={output} lies in the {what} ({place}). Choose another --{setting}.")


def files_of(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder itself; links are not followed."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def _what(folder: Path) -> str | None:
    """Whether a folder is a library or a run."""
    if (folder / LIBRARY).is_file():
        return "library"
    ours = (folder / RECORD).is_file() or (folder / "config.yaml").is_file()
    return "run" if ours and any((folder / name).is_file() for name in EDITS) else None


def _refuse_runs(folder: Path, setting: str) -> None:
    """Refuse to replace a library, or a folder in which another run lies.

    The first state of a run that a killed command has not made a library is the run itself.
    """
    if _what(folder) == "library":
        raise UserError(
            f"{setting}: {folder} is a library, whose history would be lost: it is not replaced. Choose another place."
        )
    for name in (*EDITS, LIBRARY):
        for file in folder.glob(f"*/**/{name}"):
            inside = file.parent
            unmade = _what(folder) == "run" and inside.parent == folder / STATES and (inside / STATE).is_file()
            if (what := _what(inside)) and not unmade and not _left(file, folder):
                raise UserError(
                    f"{setting}: {folder} holds the {what} {inside.relative_to(folder).as_posix()}, which would be "
                    f"lost: it is not replaced. Choose another place."
                )


def _written(folder: Path) -> set[Path]:
    """The files that records in a folder name, or those of the folders around it."""
    around = [parent / RECORD for parent in folder.parents]  # a run's record names the files of its folders too
    records = [record for record in (*folder.rglob(RECORD), *around) if record.is_file()]
    return {path for record in records for path in _recorded(record)}


def recorded(folder: Path) -> set[Path]:
    """The files that a folder was written with, by its own record; none where it has none."""
    return set(_recorded(folder / RECORD))


def _left(path: Path, folder: Path) -> bool:
    """Whether a file is part of what a killed process left in a folder."""
    return any(LEFTOVER.fullmatch(part) for part in path.relative_to(folder).parts)


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
