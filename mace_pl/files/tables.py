"""Read texts, YAML and tables that people wrote: UTF-8 in any locale, one error that names setting and file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mace_pl.errors import UserError

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """A table with a head.

    Attributes:
        columns: the names in the first line.
        rows: the line on which each row ends, and its fields by column; empty lines are no rows.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_text(path: Path, setting: str) -> str:
    """The text of a file in UTF-8; a byte-order mark is no part of it.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read ({error.strerror or error}). Check the path.") from error
    return decoded(data, f"{setting}: {path}")


def decoded(data: bytes, where: str) -> str:
    """Bytes as UTF-8 text; ``where`` names them in messages.

    Raises:
        UserError: another encoding.
    """
    if data.startswith(UTF16) or b"\0" in data:
        raise UserError(f"{where} is not UTF-8 but looks like UTF-16. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where} is not UTF-8 (byte 0x{data[error.start]:02x} in line {line}). Save it as UTF-8."
        ) from error


class _Values(yaml.SafeLoader):
    """YAML in which 3e-05 is a number as in YAML 1.2 and in JSON; for PyYAML's own loader it is a text."""


_Values.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Texts(yaml.SafeLoader):
    """YAML in which 1984, no and 2020-01-01 are the texts that they look like; null alone stays nothing."""


_Texts.yaml_implicit_resolvers = {
    first: kept
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))])
}


def _load(content: str, kind: type[yaml.SafeLoader]) -> Any:
    """What YAML holds, in which no mapping has a key twice: YAML itself would drop the first without a word.

    Raises:
        yaml.YAMLError: naming the place.
    """
    loader = kind(content)
    try:
        node = loader.get_single_node()
        _refuse_equal_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_equal_keys(top: yaml.Node | None) -> None:
    """Refuse a mapping with a key that comes twice, anywhere below a node."""
    left, seen = [top], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        keys = set[str]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys and not key.tag.endswith(":merge"):
                problem = f"the key {key.value!r} is there twice, and one of them would be dropped"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
            left.append(value)


def read_yaml(path: Path, setting: str, texts: bool = False) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        setting: the option that named it.
        texts: read every plain value as text, numbers and truth values too.

    Raises:
        UserError: it cannot be read, or is no YAML.
    """
    content = read_text(path, setting)
    try:
        return _load(content, _Texts if texts else _Values)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that cannot be
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        tab = " Indent with blanks, not with tabs." if "'\\t'" in said else ""
        what = "cannot be used" if isinstance(error, yaml.constructor.ConstructorError) else "is no YAML"
        raise UserError(f"{setting}: {path} {what} ({where}{said}).{tab} Correct it.") from error


def read_table(path: Path, setting: str) -> Table:
    """A CSV file with commas, in UTF-8.

    Raises:
        UserError: another encoding, another separator, no or equal names of columns, or a row of another length.
    """
    text = read_text(path, setting)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for fields in reader:
            if not fields:
                continue
            if not columns:
                if fields[0].startswith("sep="):
                    raise UserError(f"{setting}: {path} begins with {fields[0]!r}, for Excel. Remove that line.")
                columns = fields
                _check_head(columns, f"{setting}: {path}")
                continue
            if len(fields) != len(columns):
                raise UserError(
                    f"{setting}: {path}, line {reader.line_num} has other fields than the first line ({len(fields)}, "
                    f"not {len(columns)}). Correct it; a text that holds a comma wants quotes."
                )
            rows.append((reader.line_num, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        raise UserError(f"{setting}: {path}, line {reader.line_num} is no CSV ({error}). Correct it.") from error
    return Table(columns, rows)


def _check_head(columns: Sequence[str], where: str) -> None:
    """Refuse a first line that is cut at other characters than commas, or names a column twice."""
    separator = separated_otherwise(columns)
    if separator:
        raise UserError(f"{where} has {separator} between its fields. Save it as CSV with commas (UTF-8).")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise UserError(f"{where} names the column {twice[0]!r} twice. Name each once.")


def separated_otherwise(columns: Sequence[str]) -> str | None:
    """What is between the fields where a table has one column by commas and more by another separator."""
    if len(columns) != 1:
        return None
    return next((name for mark, name in SEPARATORS.items() if mark in columns[0]), None)
