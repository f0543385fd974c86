"""Captions out of files as a stream: COCO annotations, text, CSV, JSON lines and Parquet, packed or not.

What a file is follows from its name: ``.json`` is a COCO annotation file, ``.txt`` has a caption in each line,
``.csv``, ``.jsonl`` and ``.parquet`` have it in a column; ``.gz`` may follow each of them.
``annotations.zip:captions.json`` is a file in a zip.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

import ijson

from mace_pl.errors import UserError, install
from mace_pl.files.paths import resolve
from mace_pl.files.tables import separated_otherwise

UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Row = tuple[str, dict[str, Any]]  # the place in the file, for messages, and the columns
LAYOUT = 'Expected COCO\'s layout: {"annotations": [{"caption": "..."}, ...]}'


class HashedReader(io.RawIOBase):
    """Bytes that are hashed as they are read.

    Args:
        stream: where they come from.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` and hash what it got."""
        data: bytes = self.stream.read(len(buffer))
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """The SHA-256 of everything, read or not."""
        while data := self.stream.read(1 << 20):
            self.digest.update(data)
        return self.digest.hexdigest()


class CaptionSource:
    """One file of captions.

    Args:
        source: its path, relative to the working folder or to the project; ``archive.zip:name`` for a file in a zip.
        column: the column of CSV, JSON lines and Parquet.
        member: the file in a zip that ``source`` itself does not name.
        setting: the option that named the file, for error messages.
        option: the one that names the column, likewise.
        whole: read the other columns too.
    """

    def __init__(
        self,
        source: str,
        column: str = "caption",
        member: str | None = None,
        setting: str = "sources",
        whole: bool = False,
        option: str = "data.column",
    ) -> None:
        archive, named, inside = source.partition(".zip:")
        self.source = source
        self.path: Path = resolve(f"{archive}.zip" if named else source)
        self.member = inside if named else member
        self.column, self.setting, self.whole, self.option = column, setting, whole, option
        self.sha256 = ""  # of the content, unpacked; known when all of it was read
        self.has_column = False

    def captions(self) -> Iterator[str]:
        """The captions of :meth:`rows`."""
        with contextlib.closing(self.rows()) as rows:
            for _, caption, _ in rows:
                yield caption

    def rows(self) -> Generator[tuple[str, str, dict[str, Any]], None, None]:
        """Place, caption and columns of each row in file order, the columns only with ``whole``.

        ``sha256`` is known when they end or the generator is closed.

        Raises:
            UserError: a file that cannot be read, is not what its name says, or has an empty caption.
        """
        try:
            with self._opened() as (stream, ending):
                reader = HashedReader(stream)
                read = self._reader(ending)
                try:
                    yield from self._checked(read(reader))
                except GeneratorExit:  # enough captions: the rest is only hashed
                    self.sha256 = reader.finish()
                    raise
                self.sha256 = reader.finish()
        except UnicodeDecodeError as error:
            raise self._error(f"is not UTF-8 ({error}). Save it as UTF-8.") from error
        except UNREADABLE as error:
            said = getattr(error, "strerror", None) or error
            raise self._error(f"cannot be read ({said}; looked at {self.path}). Give a file of captions.") from error

    def _checked(self, rows: Iterator[Row]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for where, row in rows:
            caption = row.get(self.column)
            if not isinstance(caption, str):
                raise self._error(f"{where} has no text {self.column!r}. Correct it or drop it.")
            if not caption.strip():
                raise self._error(f"{where} has an empty text. Fill it in or drop it.")
            try:
                caption.encode()
            except UnicodeEncodeError as error:
                raise self._error(f"{where} has a caption that is no Unicode text ({error}). Correct it.") from error
            yield where, caption, row

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, str]]:
        """The unpacked bytes of the file and the ending that says what they are."""
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(self.path.open("rb"))
            name = self.path.name
            if name.lower().endswith(".zip"):
                archive = stack.enter_context(zipfile.ZipFile(stream))
                name = self._find_member(archive.namelist())
                stream = stack.enter_context(archive.open(name))
            if name.lower().endswith(".gz"):
                stream = stack.enter_context(gzip.open(stream))
                name = name[: -len(".gz")]
            yield stream, PurePosixPath(name).suffix.lower()

    def _find_member(self, names: list[str]) -> str:
        """The file in a zip that is meant, by its name with or without folders, or as the only one with captions."""
        files = [name for name in names if not name.endswith("/")]
        if self.member:
            members = [name for name in files if self.member in (name, PurePosixPath(name).name)]
        else:
            members = [n for n in files if PurePosixPath(n).name.startswith("captions")] or files
        if len(members) == 1:
            return members[0]
        missing = f"holds no {self.member}" if self.member else f"holds {len(members)} files of captions"
        shown = ", ".join(files[:10]) or "nothing"
        raise self._error(f"{missing}; it has {shown}. Name one, as in archive.zip:captions_val2014.json.")

    def _reader(self, ending: str) -> Callable[[HashedReader], Iterator[Row]]:
        readers = {
            ".json": self._coco,
            ".txt": self._lines,
            ".csv": self._csv,
            ".jsonl": self._json_lines,
            ".parquet": self._parquet,
        }
        if ending not in readers:
            raise self._error(f"ends with {ending!r}. Give one of {', '.join(readers)}, .gz behind it or not.")
        self.has_column = ending in (".csv", ".jsonl", ".parquet")
        return readers[ending]

    def _coco(self, raw: HashedReader) -> Iterator[Row]:
        listed, parser = False, ijson.get_backend("python") if self._has_surrogates() else ijson

        def noted(events: Iterator[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
            nonlocal listed
            for prefix, event, value in events:
                listed = listed or (prefix, event) == ("annotations", "start_array")
                yield prefix, event, value

        stream = io.BufferedReader(raw, 1 << 16)
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            stream.read(3)
        try:
            for index, annotation in enumerate(parser.items(noted(parser.parse(stream)), "annotations.item")):
                caption = annotation.get("caption") if isinstance(annotation, dict) else None
                if not isinstance(caption, str):
                    raise self._error(f"annotation {index} has no text 'caption'. {LAYOUT}; correct or drop it.")
                yield f"annotation {index}", {self.column: caption}
        except ijson.JSONError as error:
            if "UTF8" in str(error) or isinstance(error.__cause__, UnicodeDecodeError):
                raise self._error("is not UTF-8. Save it as UTF-8.") from error
            raise self._error(f"is no JSON ({error}). {LAYOUT}.") from error
        if not listed:
            raise self._error(f"has no list 'annotations'. {LAYOUT}.")

    def _has_surrogates(self) -> bool:
        """Whether escapes of surrogates stand in the file: the fast parser makes ``?`` of those that are no pair."""
        with self._opened() as (stream, _):
            before = b""
            while block := stream.read(1 << 20):
                if SURROGATE.search(before + block):
                    return True
                before = block[-4:]
        return False

    def _lines(self, raw: HashedReader) -> Iterator[Row]:
        for number, line in enumerate(text(raw), 1):
            yield f"line {number}", {self.column: line.rstrip("\r\n")}

    def _csv(self, raw: HashedReader) -> Iterator[Row]:
        try:
            rows = csv.DictReader(text(raw, newline=""), strict=True)
            rows.fieldnames = columns = [name.strip() for name in rows.fieldnames or []]
            self._need_column(columns)
            for row in rows:
                if None in row or None in row.values():
                    raise self._error(f"line {rows.line_num} has other fields than the first line. Correct it.")
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise self._error(f"is no CSV ({error}). Correct it.") from error

    def _json_lines(self, raw: HashedReader) -> Iterator[Row]:
        for number, line in enumerate(text(raw), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise self._error(f"line {number} is no JSON ({error}). Correct it.") from error
            if not isinstance(row, dict):
                raise self._error(f"line {number} is no JSON object. Expected {{{self.column!r}: ...}}.")
            yield f"line {number}", row

    def _parquet(self, raw: HashedReader) -> Iterator[Row]:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise self._error(f"needs the package pyarrow. {install('parquet')} Or give another format.") from error
        with tempfile.TemporaryFile() as copy:  # Parquet is read from its end, which a packed stream cannot
            shutil.copyfileobj(raw, copy, 1 << 20)
            try:
                table = ParquetFile(copy)
                self._need_column(table.schema_arrow.names)
                row = 0
                columns = {self.column, *(plain_columns(table.schema_arrow) if self.whole else ())}
                for batch in table.iter_batches(batch_size=1024, columns=sorted(columns)):
                    for record in batch.to_pylist():
                        yield f"row {row}", record
                        row += 1
            except ArrowException as error:
                raise self._error(f"is no readable Parquet file ({error}). Make it again.") from error

    def _need_column(self, columns: list[str]) -> None:
        shown = ", ".join(columns) or "none"
        separator = separated_otherwise(columns)
        if separator and self.column not in columns:
            raise self._error(f"has {separator} between its fields. Save it as CSV with commas (UTF-8).")
        if self.column not in columns:
            raise self._error(f"has no column {self.column!r}, its columns are {shown}. Name one with --{self.option}.")
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise self._error(f"has two columns {twice[0]!r}. Rename or drop one.")

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.setting}: {self.source}: {what}")


def plain_columns(schema: Any) -> list[str]:
    """The columns of a Parquet file that hold text or numbers: images beside captions are not read."""
    from pyarrow import types

    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return [field.name for field in schema if any(kind(field.type) for kind in kinds)]


def text(raw: HashedReader, newline: str | None = None) -> TextIO:
    """``raw`` as UTF-8 text; a byte-order mark is no part of it."""
    stream = io.TextIOWrapper(io.BufferedReader(raw, 1 << 16), encoding="utf-8-sig", newline=newline)
    return stream
