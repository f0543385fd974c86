"""Read and write every file that the project owns: safetensors with checked metadata, written aside and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.leftovers import beside, clear_leftovers, remove
from mace_pl.files.owned import refuse_file, refuse_foreign, write_record
from mace_pl.files.taken import refuse_existing, refuse_long, refuse_unwritable
from mace_pl.files.tensors import check_finite, hash_tensors, save_ordered
from mace_pl.files.versions import FORMAT_VERSION, mend

LONGEST = 80  # bytes of a name in a file name, which may have 255 with what is put around it
#: names that Windows keeps for devices, whatever ending they have
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
HASH = "modelspec.hash_sha256"
NO_HASH = "0x" + 64 * "0"
CONTENT = "sha256"  # of the tensors of a file of ours, in its provenance


@contextlib.contextmanager
def written_aside(
    path: Path,
    setting: str = "output",
    known: re.Pattern[str] | None = None,
    overwrite: bool = True,
    clear: bool = True,
) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder) that replaces it on success and vanishes on failure.

    What a killed process has left of one is removed before.

    Args:
        path: what is written. A folder gets a record of its files, and is replaced only where it holds no other.
        setting: the option that named it, for error messages.
        known: paths in a folder that is replaced which are the project's without a record.
        overwrite: replace what is there by then; if false it stays, and what is written gets a name beside it.
        clear: false where the caller has looked for leftovers, as in a folder of many files.

    Raises:
        UserError: when the place cannot be written (full or read-only disk), naming the path and the way out, when
            a file that the project did not write would be lost, or when ``overwrite`` is false and it exists by then.
    """
    if clear:
        clear_leftovers(path)
    aside = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if aside.is_dir():
            write_record(aside)
        open_to_umask(aside)
        if overwrite:
            _put(aside, path, setting, known)
        else:
            _put_new(aside, path, setting)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or choose another output."
        ) from error
    except SafetensorError as error:  # safetensors reports a failed write as its own error
        raise UserError(f"cannot write {path}: {error}. Free some space, or choose another place.") from error
    finally:
        remove(aside)


def _put_new(aside: Path, path: Path, setting: str) -> None:
    """Give what is complete its name, or another one where something has come to bear it meanwhile."""
    with contextlib.suppress(OSError):
        path.rmdir()  # an empty folder
    try:
        if not os.path.lexists(path):
            aside.rename(path)  # no system replaces a folder that holds something by this
            return
    except OSError:
        if not os.path.lexists(path):
            raise
    other = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    aside.rename(other)
    raise UserError(
        f"{setting}: another command has written {path} meanwhile, which is not replaced. What this one made lies in "
        f"{other}."
    )


def _put(aside: Path, path: Path, setting: str, known: re.Pattern[str] | None) -> None:
    """Give what is complete its name; a folder that bears it goes when the new one is in its place."""
    if not path.is_dir() or path.is_symlink():
        os.replace(aside, path)
        return
    if not aside.is_dir():
        raise UserError(f"{setting}: {path} is a folder, where a file would be written. Choose another place.")
    refuse_foreign(path, setting, known)
    old = beside(path, "old")
    path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        old.rename(path)
        raise
    gone = beside(path, "partial")  # half removed, it must not come back
    old.rename(gone)
    remove(gone)


def open_to_umask(path: Path) -> None:
    """Give files that only their owner may read, as safetensors writes them, the permissions of any other new file."""
    umask = os.umask(0)
    os.umask(umask)
    for file in (path, *path.rglob("*")):
        if file.is_file() and not file.is_symlink() and not file.stat().st_mode & 0o077:
            file.chmod(0o666 & ~umask)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, aside and renamed."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def provenance(kind: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`write_tensors` adds to the header of a safetensors file."""
    return {"mace_pl": json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **metadata})}


def save_hashed(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Save tensors with the SHA-256 of all that follows the header, as Stability's specification of metadata has it."""
    save_ordered(tensors, path, {**header, HASH: NO_HASH})
    with path.open("r+b") as file:
        offset = 8 + file.read(int.from_bytes(file.read(8), "little")).index(f'"{HASH}":"{NO_HASH}"'.encode())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(offset + len(f'"{HASH}":"0x'))
        file.write(digest.encode())


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    kind: str,
    metadata: Mapping[str, Any],
    said: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors with their provenance, aside and renamed.

    Args:
        path: the ``.safetensors`` file.
        tensors: name to tensor; made contiguous and moved to the CPU here.
        kind: what the file is (``statistics``, ``edit``, ...); checked by :func:`read_tensors`.
        metadata: JSON-serialisable provenance; kept under the key ``mace_pl`` of the safetensors header.
        said: more entries of the header, for other programs; the hash of the content joins them.

    Raises:
        UserError: values that are not finite, such as those that a narrow dtype cannot hold.
    """
    contiguous_tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    check_finite(contiguous_tensors, path.name)
    with written_aside(path) as aside:
        if said is None:
            hashed = provenance(kind, {**metadata, CONTENT: hash_tensors(contiguous_tensors)})
            save_ordered(contiguous_tensors, aside, {"format": "pt", **hashed})
        else:
            save_hashed(contiguous_tensors, aside, {"format": "pt", **said, **provenance(kind, metadata)})


def read_metadata(path: Path, setting: str) -> dict[str, Any]:
    """What a safetensors file says about itself; nothing where another program wrote it. Its tensors are not read.

    Raises:
        UserError: missing, truncated or a pickle.
    """
    if not path.is_file():
        raise UserError(f"{setting}: {path} does not exist.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        advice = mend(path, "Make it again, or give another file.")
        raise UserError(f"{setting}: {path} is no readable safetensors file ({error}). {advice}") from error
    metadata: dict[str, Any] = json.loads(header.get("mace_pl", "{}"))
    metadata.pop(CONTENT, None)
    return metadata


def read_tensors(
    path: Path, kind: str, setting: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by :func:`write_tensors` and check it.

    Args:
        path: the file.
        kind: the kind that is expected.
        setting: the option that named the file, for error messages.
        shapes: the expected shape of each tensor that must be there; ``-1`` allows any length.

    Returns:
        The tensors by name, and the provenance.

    Raises:
        UserError: missing, truncated, a pickle, another kind or format version, wrong shapes, not finite, or not
            what was written.
    """
    if not path.is_file():
        advice = mend(path, f"Give the path of a file of the kind {kind!r} that this project wrote.")
        raise UserError(f"{setting}: {path} is no file. {advice}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{setting}: {path} is no readable safetensors file ({error}). Pickles (.pt, .ckpt) are never loaded and "
            f"truncated files cannot be repaired. {mend(path, 'Make the file again.')}"
        ) from error
    metadata = json.loads(header.get("mace_pl", "{}"))
    if metadata.get("kind") != kind:
        raise UserError(f"{setting}: {path} holds {metadata.get('kind')!r}, expected {kind!r}.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{setting}: {path} has format version {metadata.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION!r}. Make it again, or use the release that wrote it."
        )
    for name, shape in (shapes or {}).items():
        actual = tuple(tensors[name].shape) if name in tensors else None
        fits = actual is not None and len(actual) == len(shape)
        if not fits or any(s not in (-1, f) for s, f in zip(shape, actual or (), strict=True)):
            raise UserError(f"{setting}: {path} has {name} of shape {actual}, expected {shape}.")
    again = mend(path, "Make the file again.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.double().abs().sum())):
            raise UserError(f"{setting}: {path} has values in {name} that are not finite. {again}")
    if metadata.pop(CONTENT, None) not in (None, hash_tensors(tensors)):
        raise UserError(f"{setting}: {path} is damaged: its values are not those that were written. {again}")
    return tensors, metadata


def claim_output(path: Path, overwrite: bool, setting: str = "output_dir") -> None:
    """Refuse an output that exists and is not empty, unless ``overwrite`` and the project wrote all that it holds.

    What a killed process has left of it is removed.

    Raises:
        UserError: it exists, it holds files of others, its name is too long, or it cannot be created.
    """
    refuse_long(path, setting)
    clear_leftovers(path)
    if not overwrite:
        refuse_existing(path, setting)
    if path.is_dir():
        refuse_foreign(path, setting)
    elif path.exists() and setting == "output_dir":
        raise UserError(f"{setting}: {path} is a file, which is not replaced by a folder. Choose another --{setting}.")
    elif path.exists():
        refuse_file(path, setting)
    refuse_unwritable(path, setting)


def readable(text: str, longest: int = LONGEST) -> str:
    """Letters, digits, dots and dashes of ``text``, anything else as underscores; at most ``longest`` bytes."""
    plain = "".join(c if c.isalnum() or c in "-." else "_" for c in text.strip())
    return plain.encode()[:longest].decode("utf-8", "ignore")


def slug(name: str) -> str:
    """A file name for a concept, which no other has and which lies in its folder whatever the name holds.

    Blanks become underscores, and letters that this system's file names cannot hold. Where more than blanks is lost, or
    a system would not take the rest as it is (hidden, too long, a device, dots at its ends), the first digits of the
    name's SHA-256 follow.
    """
    plain = readable(name)
    try:
        plain.encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:
        plain = "".join(c if c.isascii() else "_" for c in plain)
    safe = plain and plain == plain.strip("._") and plain.split(".")[0].lower() not in RESERVED
    if safe and plain.replace("_", " ") == name:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain.replace('.', '_').strip('_-') or 'name'}-{digest}"
