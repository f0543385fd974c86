"""What a library holds once, by its content: sums and LoRA of each concept, and what it was trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mace_pl.concepts.concept import Concept
from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.files.tensors import hash_tensors
from mace_pl.files.versions import ENTRIES, REFINEMENTS, RESTORE, read_json
from mace_pl.methods.edit import Edit
from mace_pl.methods.lora import to_peft
from mace_pl.run import Run

ENTRY = "entry.json"


@dataclass(frozen=True)
class Entry:
    """What an entry was made from.

    Attributes:
        concept: target, anchor, kind, and the user's own images and masks.
        templates: its prompts; None where the run does not say.
        refinement: hash of the edit of stage 1 on which its LoRA was trained; None where none was, or it is not known.
        made_from: hashes of the base's ``text_encoder`` and ``unet`` and of ``statistics``, ``seed``, ``version``.
    """

    concept: Concept
    templates: Sequence[str] | None
    refinement: str | None
    made_from: Mapping[str, Any]


def content_of(run: Run, concept: Concept) -> str:
    """The hash of a concept of a run: its sums, its LoRA, target, anchor and kind.

    Raises:
        UserError: a file of the concept is not there or cannot be read.
    """
    sums, factors = run.concept(concept.target)
    loras = {f"{name}.{x}": t for name, pair in factors.items() for x, t in zip("AB", pair, strict=True)}
    return hash_tensors({**sums.tensors, **loras}, [concept.target, concept.anchor, concept.kind])


def store_entry(library: Path, run: Run, entry: Entry) -> str:
    """Take a concept of a run into a library, unless it is there; returns the hash of its content.

    Args:
        library: its folder.
        run: where sums and LoRA of the concept lie.
        entry: what it is.

    Raises:
        UserError: a file of the concept is not there or cannot be read.
    """
    concept, content = entry.concept, content_of(run, entry.concept)
    folder = library / ENTRIES / content
    if not folder.is_dir():
        with written_aside(folder) as aside:
            own = Run(aside, run.base, [{"target": concept.target}])
            own.take_concepts(run)
            write_json(aside / ENTRY, asdict(entry))
    return content


def read_entry(library: Path, content: str) -> Entry:
    """What an entry was made from.

    Raises:
        UserError: its file is not there or damaged.
    """
    file = library / ENTRIES / content / ENTRY
    said = read_json(file)
    try:
        entry = Entry(**{**said, "concept": Concept(**said["concept"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"run: {file} is damaged ({error}). {RESTORE}") from error
    texts = (entry.concept.target, entry.concept.anchor, entry.concept.kind, *(entry.templates or ()))
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.refinement, str | None):
        raise UserError(f"run: {file} is damaged: it has a value that is no text. {RESTORE}")
    return entry


def store_refinement(library: Path, refined: Edit, provenance: Mapping[str, Any]) -> str:
    """Write an edit of stage 1, unless it is there; returns the hash of its content."""
    pooled = {} if refined.pooled is None else {"pooled": refined.pooled}
    content = hash_tensors({"R": refined.R, **to_peft(refined.factors), **pooled})
    file = refinement_file(library, content)
    if not file.is_file():
        refined.save(file, provenance)
    return content


def refinement_file(library: Path, content: str) -> Path:
    """Where an edit of stage 1 lies."""
    return library / REFINEMENTS / f"{content}.safetensors"


def take_entries(library: Path, other: Path, contents: Iterable[str]) -> None:
    """Copy entries of another library, and the refinements on which they were trained."""
    for content in contents:
        refinement = read_entry(other, content).refinement
        if refinement is not None and not refinement_file(library, refinement).is_file():
            with written_aside(refinement_file(library, refinement)) as aside:
                shutil.copyfile(refinement_file(other, refinement), aside)
        if not (library / ENTRIES / content).is_dir():
            with written_aside(library / ENTRIES / content) as aside:
                shutil.copytree(other / ENTRIES / content, aside)


def take_tree(source: Path, target: Path, without: Iterable[str]) -> None:
    """Take a folder over, without some paths in it: files as links, so that they lie on the disk once, or as copies.

    Raises:
        UserError: a file cannot be read.
    """
    left_out = set(without)

    def left(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if (Path(folder) / n).relative_to(source).as_posix() in left_out]

    try:
        shutil.copytree(source, target, symlinks=True, ignore=left, copy_function=link_or_copy)
    except shutil.Error as error:
        raise UserError(f"run: {source} cannot be taken over: {error}. Mend its files.") from error


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file; a copy on a disk without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
