"""What is erased: a target, its anchor and its kind; prompts that name it; which tokens are whose."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mace_pl.artifacts import slug
from mace_pl.paths import resolve
from mace_pl.templates import TEMPLATES


@dataclass(frozen=True)
class Concept:
    """One concept to erase.

    Attributes:
        target: the words that name it, as in "ship".
        anchor: what its prompts shall mean instead (the paper's mapping concept), as in "ground".
        kind: ``object`` or ``person`` (with a mask; prompts of the latter have no article), or ``style`` (all pixels).
        images: folder of the user's own pictures of it, turned by their EXIF orientation and on white where they are
            transparent; None lets the original model draw them.
        masks: folder of their masks, white on the target, equal names, sizes as the images are shown; ``none`` for no
            mask; None for those of ``data.mask``.
    """

    target: str
    anchor: str
    kind: str = "object"
    images: str | None = None
    masks: str | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: an empty target or anchor, or an unknown kind.
        """
        for field in ("target", "anchor"):
            if not str(getattr(self, field)).strip():
                raise ValueError(
                    f"data.concepts: {field} is empty in {self}. Name it, as in {{target: ship, anchor: ground}}."
                )
        if self.kind not in TEMPLATES:
            raise ValueError(
                f"data.concepts: kind={self.kind!r} of {self.target!r} is unknown. Choose from {', '.join(TEMPLATES)}."
            )


def read_names(given: Sequence[str] | str | None, setting: str) -> list[str]:
    """The names of a list, or of a text file with one on each line; each once, in order.

    Raises:
        ValueError: no such file, no text in UTF-8, or no name in it.
    """
    if isinstance(given, str):
        path = resolve(given)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{setting}={given} cannot be read as text ({error}). Give a list of names, or a file with a "
                f"name on each line."
            ) from error
        given = [line.strip() for line in lines]
        if not any(given):
            raise ValueError(f"{setting}: {path} holds no name. Write one on each line.")
    return list(dict.fromkeys(name.strip() for name in given or [] if name.strip()))


def _rows(source: str) -> list[dict[str, Any]]:
    path = resolve(source)
    if not path.is_file():
        raise ValueError(f"data.concepts={source} is no file. Give a list of concepts, or a CSV or YAML file of them.")
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, list):
        raise ValueError(
            f"data.concepts={source} holds {type(loaded).__name__}, expected a list of {{target, anchor, kind}}."
        )
    return loaded


def read_concepts(source: str | Sequence[dict[str, Any] | Concept]) -> list[Concept]:
    """Concepts from a list of dicts, or from a CSV or YAML file with the columns target, anchor, kind, images, masks.

    Raises:
        ValueError: no concept at all, an unknown or missing column, an unknown kind, or the same target twice.
    """
    rows = _rows(source) if isinstance(source, str) else source
    concepts = []
    for row in rows:
        if isinstance(row, Concept):
            concepts.append(row)
            continue
        known = set(Concept.__dataclass_fields__)
        if not isinstance(row, dict) or set(row) - known or not {"target", "anchor"} <= set(row):
            raise ValueError(
                f"data.concepts: cannot read {row!r}. Each needs target and anchor of {', '.join(sorted(known))}."
            )
        concepts.append(Concept(**row))
    if not concepts:
        raise ValueError(
            "data.concepts is empty. Name at least one, as in [{target: ship, anchor: ground, kind: object}]."
        )
    seen: dict[str, str] = {}
    for concept in concepts:
        key = slug(concept.target).lower()
        if key in seen:
            raise ValueError(
                f"data.concepts names the target {concept.target!r} twice (the other is {seen[key]!r}). Remove one."
            )
        seen[key] = concept.target
    return concepts


def read_templates(source: str | Sequence[str] | None, kind: str) -> list[str]:
    """Templates with one ``{}`` each, from a list or a text file; None gives the project's own for the kind.

    Raises:
        ValueError: no template, or one without ``{}`` - a prompt that does not show the target.
    """
    if source is None:
        return list(TEMPLATES[kind])
    if isinstance(source, str):
        path = resolve(source)
        if not path.is_file():
            raise ValueError(
                f"data.templates={source} is no file. Give a list, or a text file with one template a line."
            )
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        lines = list(source)
    if not lines:
        raise ValueError("data.templates is empty. Give at least one, as in 'a photo of a {}'.")
    for line in lines:
        if line.count("{}") != 1:
            raise ValueError(f"data.templates: {line!r} must contain {{}} exactly once, where the target goes.")
    return lines


def templates_of(
    source: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None, concepts: Sequence[Concept]
) -> list[list[str]]:
    """The templates of each concept; a mapping, given or in a YAML file, is looked up by target, then by kind.

    Raises:
        ValueError: a mapping with a name that is neither, or templates that cannot be used.
    """
    if isinstance(source, str) and resolve(source).is_file() and resolve(source).suffix in (".yaml", ".yml"):
        source = yaml.safe_load(resolve(source).read_text(encoding="utf-8"))
    if not isinstance(source, Mapping):
        return [read_templates(source, concept.kind) for concept in concepts]
    for name in set(source) - set(TEMPLATES) - {concept.target for concept in concepts}:
        kinds = ", ".join(TEMPLATES)
        raise ValueError(f"data.templates: {name!r} is neither a target nor a kind. Choose from {kinds}, or a target.")
    return [read_templates(source.get(c.target, source.get(c.kind)), c.kind) for c in concepts]


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(
        prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids
    return ids


def _length(tokenizer: Any, prompt: str) -> int:
    return len(tokenizer(prompt).input_ids)


def aligned_positions(tokenizer: Any, target_prompt: str, anchor_prompt: str) -> tuple[list[int], list[int]]:
    """Positions of the co-existing tokens in a target prompt and in its anchor prompt, lists of equal length.

    The common prefix and the common suffix (end token and padding included) of the two prompts co-exist. Where target
    and anchor have different token counts the suffixes start at different positions, and the longer tail is cut.
    """
    target, anchor = _tokens(tokenizer, target_prompt), _tokens(tokenizer, anchor_prompt)
    size = len(target)
    target_end = min(_length(tokenizer, target_prompt), size)
    anchor_end = min(_length(tokenizer, anchor_prompt), size)
    prefix = 0
    while prefix < min(target_end, anchor_end) and target[prefix] == anchor[prefix]:
        prefix += 1
    if prefix == min(target_end, anchor_end) == max(target_end, anchor_end):
        return list(range(size)), list(range(size))  # the same prompt
    suffix = 0
    limit = min(target_end, anchor_end) - prefix
    while suffix < limit and target[target_end - 1 - suffix] == anchor[anchor_end - 1 - suffix]:
        suffix += 1
    target_tail, anchor_tail = range(target_end - suffix, size), range(anchor_end - suffix, size)
    length = min(len(target_tail), len(anchor_tail))
    return [*range(prefix), *target_tail[:length]], [*range(prefix), *anchor_tail[:length]]


def token_span(tokenizer: Any, template: str, words: str) -> tuple[int, int]:
    """Positions [start, stop) of the words' own tokens in the filled template, wherever the tokenizer cuts it."""
    before = template.split("{}")[0]
    # tokens are counted on the text up to the words, so that words which occur elsewhere too are found here
    start = _length(tokenizer, before.strip()) - 1 if before.strip() else 1
    return start, _length(tokenizer, (before + words).strip()) - 1


def target_span(tokenizer: Any, template: str, target: str) -> tuple[int, int]:
    """Positions [start, stop) of the target's own tokens in the filled template.

    Raises:
        ValueError: truncation at the tokenizer's length cuts the target, or it has no token of its own.
    """
    size = tokenizer.model_max_length
    start, stop = token_span(tokenizer, template, target)
    if stop <= start or stop > size - 1:
        raise ValueError(
            f"data.templates: {template!r} does not show the target {target!r}: its tokens are {start} to {stop} of "
            f"{size}. Shorten the template or the target."
        )
    return start, stop


def attended_positions(tokenizer: Any, template: str, target: str, padding: bool = True) -> list[bool]:
    """Which of the T tokens the loss looks at: the target's own and, with ``padding``, the end token and padding."""
    start, stop = target_span(tokenizer, template, target)
    size = tokenizer.model_max_length
    end = min(_length(tokenizer, template.replace("{}", target)), size) - 1
    return [start <= i < stop or (padding and i >= end) for i in range(size)]
