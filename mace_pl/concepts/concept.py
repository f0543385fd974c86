"""What is erased: a target, its anchor and its kind; prompts that name it; which tokens are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mace_pl.concepts.names import clean_name
from mace_pl.concepts.templates import SETS, TEMPLATES, style_templates
from mace_pl.errors import UserError, nearest
from mace_pl.files.artifacts import slug
from mace_pl.files.paths import resolve
from mace_pl.files.tables import read_table, read_text, read_yaml

AUTO = "auto"  # an anchor that is chosen when the run starts: see mace_pl/concepts/anchors.py


@dataclass(frozen=True)
class Concept:
    """One concept to erase.

    Attributes:
        target: the words that name it, as in "ship".
        anchor: what its prompts shall mean instead (the paper's mapping concept), as in "ground"; "" for a method
            that puts nothing in the target's place; ``auto`` lets the rule of ``mace_pl/concepts/anchors.py`` choose.
        kind: ``object`` or ``person`` (with a mask; prompts of the latter have no article), or ``style`` (all pixels).
        images: folder of the user's own images of it, turned by their EXIF orientation and on white where they are
            transparent; None lets the original model generate them.
        masks: folder of their masks, white on the target, equal names, sizes as the images are shown; ``none`` for no
            mask; None for those of ``data.mask``.
    """

    target: str
    anchor: str = AUTO
    kind: str = "object"
    images: str | None = None
    masks: str | None = None

    def __post_init__(self) -> None:
        """Check the fields, and spell target and anchor as tokenizers read them.

        Raises:
            UserError: an empty target or anchor, an unknown kind, or what is no text.
        """
        without_anchor = self.anchor == ""
        for field in ("target", "anchor"):
            object.__setattr__(self, field, clean_name(getattr(self, field), f"data.concepts: {field}"))
            if not getattr(self, field) and not (field == "anchor" and without_anchor):
                raise UserError(
                    f"data.concepts: a {field} is empty (target {self.target!r}, anchor {self.anchor!r}). Name it, as "
                    f"in {{target: ship, anchor: ground}}."
                )
        if self.anchor != AUTO and self.anchor.casefold() == AUTO:
            raise UserError(f"data.concepts: anchor {self.anchor!r} of {self.target!r}: write {AUTO} in small letters.")
        if self.kind not in TEMPLATES:
            raise UserError(
                f"data.concepts: kind={self.kind!r} of {self.target!r} is unknown. Choose from {', '.join(TEMPLATES)}."
            )
        for field in ("images", "masks"):
            value = getattr(self, field)
            if not isinstance(value, str | None):
                raise UserError(f"data.concepts: {field}={value!r} of {self.target!r} is no path. Write it in quotes.")


def read_names(given: Sequence[str] | str | None, setting: str) -> list[str]:
    """The names of a list, or of a text file with one on each line; each once, in order.

    Raises:
        UserError: no such file, no text in UTF-8, no name in it, or what is no text or empty in a list.
    """
    listed = not isinstance(given, str)
    if isinstance(given, str):
        path = resolve(given)
        if given.startswith(("[", "{")):  # a list of the command line, of which the parser made no list of texts
            raise UserError(
                f"{setting}={given} is no list of texts: it holds a number, yes, no, null or a mapping. Write such "
                f"names in quotes, as in ['1984']."
            )
        if not path.is_file():
            raise UserError(
                f"{setting}={given} cannot be read: it is no file. Give a list of names, or a file with a name on each "
                f"line."
            )
        given = [line.strip() for line in read_text(path, setting).splitlines()]
        if not any(given):
            raise UserError(f"{setting}: {path} holds no name. Write one on each line.")
    names = [clean_name(name, setting) for name in given or []]
    if listed and not all(names):
        raise UserError(f"{setting}: a name of {list(given or [])} is empty. Remove it, or write [] for no names.")
    return list(dict.fromkeys(name for name in names if name))


def _rows(source: str) -> list[Any]:
    path = resolve(source)
    if not path.is_file():
        raise UserError(f"data.concepts={source} is no file. Give a list, as [ship, dog], or a CSV or YAML file.")
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        table = read_table(path, "data.concepts")
        return [_of_line(fields, path, line) for line, fields in table.rows]
    if ending not in (".yaml", ".yml", ".json"):
        raise UserError(f"data.concepts={source} ends with {path.suffix!r}. Give a .csv or .yaml file.")
    loaded = read_yaml(path, "data.concepts", texts=True)
    if not isinstance(loaded, list):
        raise UserError(
            f"data.concepts={source} holds {type(loaded).__name__}, expected a list of {{target, anchor, kind}}."
        )
    return loaded


def _of_line(fields: Mapping[str, str], path: Path, line: int) -> dict[str, str]:
    """What a line of a table says of a concept; an empty field says nothing, but that there is no anchor."""
    row = {column: field.strip() for column, field in fields.items() if field.strip() or column == "anchor"}
    unknown = ", ".join(set(fields) - set(Concept.__dataclass_fields__))
    if unknown or "target" not in row:
        what = f"has the columns {unknown}, which no concept has" if "target" in row else "has no target"
        what += f" (columns found: {', '.join(fields)})"
        raise UserError(
            f"data.concepts: {path}, line {line} {what}. Give columns of {', '.join(Concept.__dataclass_fields__)}."
        )
    return row


def read_concepts(source: str | Sequence[dict[str, Any] | str | Concept]) -> list[Concept]:
    """Concepts from a list of dicts and of bare targets, or from a CSV or YAML file.

    Their keys, and the columns of a file, are target, anchor, kind, images, masks.

    Raises:
        UserError: no concept at all, an unknown or missing column, an unknown kind, the same target twice, or two
            whose files would have one name.
    """
    rows = _rows(source) if isinstance(source, str) else source
    concepts = []
    for row in rows:
        if isinstance(row, Concept | str):
            concepts.append(_bare(row) if isinstance(row, str) else row)
            continue
        known = set(Concept.__dataclass_fields__)
        if not isinstance(row, dict) or set(row) - known or "target" not in row:
            unknown = next((str(key) for key in row if key not in known), "") if isinstance(row, dict) else ""
            raise UserError(
                f"data.concepts: cannot read {row!r}. Each needs a target, and knows {', '.join(sorted(known))}."
                + (f" {unknown} does not exist.{nearest(unknown, known)}" if unknown else "")
            )
        concepts.append(Concept(**{name: "" if name == "anchor" and v is None else v for name, v in row.items()}))
    if not concepts:
        raise UserError(
            "data.concepts is empty. Name at least one, as in [ship] or [{target: ship, anchor: ground, kind: object}]."
        )
    _check_distinct([concept.target for concept in concepts])
    return concepts


def _bare(target: str) -> Concept:
    """A concept of a bare target.

    Raises:
        UserError: it is a whole list, which is what the parser makes of an entry that is no text.
    """
    if _holds_no_text(target):
        raise UserError(
            f"data.concepts: {target} holds what is no text: a number, a date, yes, no, null or a list. Write such "
            f"names in quotes, as in ['1984']."
        )
    return Concept(target)


def _holds_no_text(target: str) -> bool:
    """Whether a target is written as a list with an entry that is no text; "[red] paint" and "[red]" are names."""
    try:
        listed = yaml.safe_load(target) if target.startswith("[") else None
    except yaml.YAMLError:
        return False
    return isinstance(listed, list) and not all(isinstance(entry, str) for entry in listed)


def _check_distinct(targets: Sequence[str]) -> None:
    """Refuse targets that differ in case alone, and those whose files a file system might take for one."""
    names: dict[str, str] = {}
    files: dict[str, str] = {}
    for target in targets:
        key, file = target.casefold(), slug(target).casefold()
        if key in names:
            other = "" if names[key] == target else f" (the other is {names[key]!r})"
            raise UserError(f"data.concepts names the target {target!r} twice{other}. Remove one.")
        if file in files:
            raise UserError(
                f"data.concepts: {target!r} and {files[file]!r} would have one file name. Write one of them otherwise."
            )
        names[key] = files[file] = target


def read_templates(source: str | Sequence[str] | None, kind: str, names: Sequence[str] = ()) -> list[str]:
    """Templates with one ``{}`` each, from a list or a text file; the project's own for the kind by the name of a set.

    None gives the plain set, of styles with some of the names.

    Raises:
        UserError: no template, or one without ``{}`` - a prompt that does not show the target.
    """
    if source is None:
        return style_templates(names) if kind == "style" else list(TEMPLATES[kind])
    if isinstance(source, str) and source in SETS:
        return list(SETS[source][kind])
    if isinstance(source, str):
        path = resolve(source)
        if not path.is_file():
            raise UserError(
                f"data.templates={source} is no file. Give a list, a text file with one template a line, or one of the "
                f"project's sets: {', '.join(SETS)}."
            )
        lines = [line.strip() for line in read_text(path, "data.templates").splitlines() if line.strip()]
    else:
        lines = list(source)
    if not lines:
        raise UserError("data.templates is empty. Give at least one, as in 'a photo of a {}'.")
    for line in lines:
        if not isinstance(line, str) or line.count("{}") != 1:
            raise UserError(f"data.templates: {line!r} must contain {{}} exactly once, where the target goes.")
    return lines


def templates_of(
    source: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    concepts: Sequence[Concept],
    names: Sequence[str] = (),
) -> list[list[str]]:
    """The templates of each concept; a mapping, given or in a YAML file, is looked up by target, then by kind.

    Args:
        source: as ``data.templates``.
        concepts: what is erased.
        names: what the model knows; styles are asked for in some of these where no templates are given.

    Raises:
        UserError: a mapping with a name that is neither, or templates that cannot be used.
    """
    if isinstance(source, str) and resolve(source).suffix.lower() in (".yaml", ".yml") and resolve(source).is_file():
        source = read_yaml(resolve(source), "data.templates", texts=True)
    if not isinstance(source, Mapping):
        return [read_templates(source, concept.kind, names) for concept in concepts]
    source = {clean_name(name, "data.templates"): texts for name, texts in source.items()}
    for name in set(source) - set(TEMPLATES) - {concept.target for concept in concepts}:
        kinds = ", ".join(TEMPLATES)
        raise UserError(
            f"data.templates: {name!r} is neither a target nor a kind. Choose from {kinds}, or a target."
            + nearest(str(name), [*TEMPLATES, *(concept.target for concept in concepts)])
        )
    return [read_templates(source.get(c.target, source.get(c.kind)), c.kind, names) for c in concepts]
