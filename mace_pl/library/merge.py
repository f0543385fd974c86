"""Entries of another library, or of a run, for one of the same model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from shlex import quote

from mace_pl.concepts.concept import read_concepts
from mace_pl.errors import UserError, called
from mace_pl.files.screen import screen
from mace_pl.library.change import Library, concepts_of, first_notes, store_run
from mace_pl.library.history import Event, Note
from mace_pl.library.states import Base
from mace_pl.library.store import content_of, take_entries
from mace_pl.methods.chosen import chosen


def merge_library(library: Library, base: Base, other: Library, event: Event) -> Library:
    """Add the entries of another library, with their strengths; what both have with the same content stays as it is.

    Args:
        library: what is added to.
        base: its model.
        other: a library, or a run.
        event: what is done, and why.

    Raises:
        UserError: another base model or method, a target that both have in two ways, or nothing new.
    """
    refuse_other(library, other)
    own, theirs = contents_of(library), contents_of(other)
    for target, content in theirs.items():
        if own.get(target, content) != content:
            raise UserError(
                f"merge: {target!r} is in {library.folder} and in {other.folder}, made in two ways. Remove the one "
                f"that you do not want: erase.py remove --run FOLDER --targets {quote(target)}. Where it is the only "
                f"entry of its folder, use the other folder as it is."
            )
    new = {target: content for target, content in theirs.items() if target not in own}
    if not new:
        raise UserError(
            f"merge={other.folder} has no entry that {library.folder} does not have: there is nothing to add."
        )
    with called({"data.concepts": "merge"}):  # names that differ in case alone, or have one file name
        read_concepts([{"target": target, "anchor": target} for target in [*own, *new]])
    library = library.founded(base)  # nothing is written before
    notes = taken(library, base, other)
    added = {target: notes[target] for target in new}
    members = library.members.within(new, weights=strengths_in(other, new))
    return library.changed(base, members, replace(event, targets=tuple(new), added=added))


def strengths_in(other: Library, targets: Iterable[str]) -> dict[str, float]:
    """The strengths of some targets of another library, which are said; none of those that are erased fully."""
    strengths = other.run.fused.weights if other.run.fused else {}
    found = {target: strengths[target] for target in targets if strengths.get(target, 1) != 1}
    for target, weight in found.items():
        screen().print(f"The strength of {target!r} is {weight:g}, as in {other.folder}.", soft_wrap=True)
    return found


def contents_of(library: Library) -> dict[str, str]:
    """The hash of every entry by its target, also of a run that is no library yet."""
    if library.history.events:
        return dict(library.members.entries)
    return {concept.target: content_of(library.run, concept) for concept in concepts_of(library.run)}


def taken(library: Library, base: Base, other: Library) -> Mapping[str, Note]:
    """Take the entries of another library over, with why they are in it."""
    if not other.history.events:
        run = replace(other.run, base=base.run.base, config={**other.run.config, "model": model_at(base, other)})
        contents = store_run(library.folder, replace(base, run=run), run, concepts_of(run))
        return first_notes(run, contents)
    notes = other.history.notes()
    take_entries(library.folder, other.folder, other.members.entries.values())
    return {target: notes[target] for target in other.members.targets}


def model_at(base: Base, other: Library) -> Mapping[str, object]:
    """How another run was edited, with the place where the base is now."""
    return base.run.base.applied(other.run.config["model"])


def refuse_other(library: Library, other: Library) -> None:
    """Refuse a library whose sums and LoRAs do not add up with the library's.

    Raises:
        UserError: naming what differs.
    """
    for part in ("text_encoder", "unet"):
        if getattr(library.run.base, part) != getattr(other.run.base, part):
            raise UserError(
                f"merge={other.folder} was made from another base model: its {part.replace('_', ' ')} is not that of "
                f"{library.folder} ({library.run.base.name}). Give a library of the same model."
            )
    own, its = (repr(chosen(one.run.config["model"].get("method"))) for one in (library, other))
    if own != its:
        raise UserError(
            f"merge={other.folder} was edited by {its}, {library.folder} by {own}. Give one of that method."
        )
