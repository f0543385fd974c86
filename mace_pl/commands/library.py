"""A library of concepts: add, remove and replace entries of a run, undo, and a log of all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from mace_pl.commands.train_entries import (
    RETRAIN_ABOVE,
    own_names,
    own_rank,
    refuse_twice,
    refuse_unused,
    shown_by,
    train_again,
    train_entries,
)
from mace_pl.concepts.concept import read_concepts
from mace_pl.concepts.names import clean_names
from mace_pl.errors import UserError, called, nearest
from mace_pl.files.paths import resolve
from mace_pl.files.screen import screen
from mace_pl.files.versions import LIBRARY, STATES
from mace_pl.library.change import Library
from mace_pl.library.history import UNDO, Event, History
from mace_pl.library.lock import changing
from mace_pl.library.log import print_log
from mace_pl.library.merge import merge_library
from mace_pl.library.states import Base
from mace_pl.models.pipeline import relative_to_project
from mace_pl.run import Run

Templates = str | list[str] | dict[str, str | list[str]]


def add_concepts(
    run: str,
    concepts: str | list[dict[str, Any] | str] | None = None,
    merge: str | None = None,
    templates: Templates | None = None,
    reason: str | None = None,
    requester: str | None = None,
    retrain_above: float | None = RETRAIN_ABOVE,
    kept: list[str] | None = None,
    report_seeds: int | None = None,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Add concepts to a library, or to a run of fit, which becomes one.

    The concepts are summed and trained by themselves, with the settings of the run; then refinement and fusion are
    solved again over all entries. The edit is that of the set of requests, whatever their order.

    Args:
        run: the library, or an output folder of ``fit`` or ``fuse``.
        concepts: as ``data.concepts`` of ``fit``: a list of targets or of {target, anchor, kind}, or a file.
        merge: another library of the same model, or a run, whose entries are added in place of concepts.
        templates: their prompts, as ``data.templates`` of ``fit``; those of the run when None.
        reason: why; free text.
        requester: who asked for it; free text.
        retrain_above: a LoRA is trained again where the refinement has moved the keys and values of its tokens by more
            than this part of their size since it was trained; never when null.
        kept: names that are shown and scored beside the new targets, as of ``fit``; [] for none, those of the run when
            None.
        report_seeds: images per name, before and after; 0 generates none; as the run when None.
        pretrained: where the base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; likewise.

    Returns:
        The library.

    Raises:
        UserError: no run there, a target that is in the library already, another base model, or a library that another
            process is writing.
    """
    _check_above(retrain_above)
    if (concepts is None) == (merge is None):
        raise UserError("give either --concepts or --merge: what is added.")
    shown = shown_by(kept, report_seeds)
    if merge is not None:
        refuse_unused({"templates": templates, "kept": kept, "report_seeds": report_seeds})
    with _opened(run) as library:
        library = _at(library, pretrained, layout)
        if merge is not None and own_rank():
            return library.folder
        if merge is not None:
            other = Library.open(merge, "merge")
            event = Event("merge", reason=reason or f"from {other.folder.name}", requester=requester)
            library = merge_library(library, Base.load(library.run), other, event)
        else:
            event = Event("add", reason=reason, requester=requester)
            with called(own_names(templates)):
                named = read_concepts(concepts or [])
                refuse_twice(library, [concept.target for concept in named])
                library = train_entries(library, named, templates, event, shown)
        return _shown(train_again(library, retrain_above))


def replace_concepts(
    run: str,
    concepts: str | list[dict[str, Any] | str],
    templates: Templates | None = None,
    reason: str | None = None,
    requester: str | None = None,
    retrain_above: float | None = RETRAIN_ABOVE,
    kept: list[str] | None = None,
    report_seeds: int | None = None,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Make entries of a library anew, with another anchor, other prompts or images.

    Args:
        run: the library, or an output folder of ``fit`` or ``fuse``, which becomes one.
        concepts: as ``data.concepts`` of ``fit``; their targets are in the library.
        templates: their prompts, as ``data.templates`` of ``fit``; those of the run when None.
        reason: why; free text.
        requester: who asked for it; free text.
        retrain_above: as for ``add``.
        kept: as for ``add``.
        report_seeds: as for ``add``.
        pretrained: where the base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; likewise.

    Returns:
        The library.

    Raises:
        UserError: as ``add``, and a target that is not in the library.
    """
    _check_above(retrain_above)
    shown = shown_by(kept, report_seeds)
    with _opened(run) as library:
        library = _at(library, pretrained, layout)
        event = Event("replace", reason=reason, requester=requester)
        with called(own_names(templates)):
            named = read_concepts(concepts)
            _refuse_unknown(library, [concept.target for concept in named], "concepts")
            library = train_entries(library, named, templates, event, shown)
        return _shown(train_again(library, retrain_above))


def remove_concepts(
    run: str,
    targets: list[str] | str,
    reason: str | None = None,
    requester: str | None = None,
    retrain_above: float | None = RETRAIN_ABOVE,
    pretrained: str | None = None,
    layout: str | None = None,
) -> Path:
    """Take concepts out of a library; its earlier states stay.

    Args:
        run: the library, or an output folder of ``fit`` or ``fuse``, which becomes one.
        targets: a list, or ``ship,dog``.
        reason: why; free text.
        requester: who asked for it; free text.
        retrain_above: as for ``add``.
        pretrained: where the base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; likewise.

    Returns:
        The library.

    Raises:
        UserError: a target that is not in the library, nothing left, or as ``add``.
    """
    _check_above(retrain_above)
    named = clean_names(targets.split(",") if isinstance(targets, str) else targets, "targets")
    if not named:
        raise UserError("targets: names none. Name what is removed, as in ship,dog.")
    with _opened(run) as library:
        _refuse_unknown(library, named, "targets")
        if set(named) == set(library.run.targets):
            raise UserError(f"targets: nothing would be left in {library.folder}. Use the original model instead.")
        if own_rank():
            return library.folder
        base = Base.load(library.run, pretrained, layout)
        library = library.founded(base)
        event = Event("remove", targets=tuple(named), reason=reason, requester=requester)
        library = library.changed(base, library.members.within(removed=named), event)
        return _shown(train_again(library, retrain_above))


def undo_change(run: str, to: str | None = None, reason: str | None = None, requester: str | None = None) -> Path:
    """Bring an earlier state of a library back, to the bit; what was undone stays and can be brought back too.

    Args:
        run: the library.
        to: beginning of a state's id, as ``log`` lists them; the state before the current one when None.
        reason: why; free text.
        requester: who asked for it; free text.

    Returns:
        The library.

    Raises:
        UserError: no library, nothing to undo, no such state, or one that is not whole.
    """
    _history(run)
    with _changed(run) as folder:
        history = _history(run)
        if own_rank():
            return folder
        number = history.earlier(to)
        state = history.events[number].state
        library = Library(folder, Run.load(folder / STATES / state), history)  # the current state may be damaged
        return _shown(library.committed(Event(UNDO, state, number, reason=reason, requester=requester)))


def show_log(run: str) -> None:
    """Print what was done to a library, and its entries.

    Args:
        run: the library.

    Raises:
        UserError: no library, or its current state is damaged, which is said after what was done.
    """
    print_log(resolve(run), _history(run))


# --- what the commands share -----------------------------------------------------------------------------------------


def _check_above(retrain_above: float | None) -> None:
    if retrain_above is not None and not retrain_above >= 0:
        raise UserError(f"retrain_above={retrain_above} must be at least 0, or null, which never trains again.")


@contextmanager
def _opened(run: str) -> Iterator[Library]:
    """The library, which no other command writes meanwhile; the first rank writes for all."""
    with _changed(run):
        yield Library.open(run)


@contextmanager
def _changed(run: str) -> Iterator[Path]:
    """The folder of a library, or of a run that can become one, which no other command writes meanwhile."""
    folder = resolve(run)
    if not (folder / LIBRARY).is_file():
        Library.open(run)  # nothing is written into what is refused
    with nullcontext() if own_rank() else changing(folder):
        yield folder


def _shown(library: Library) -> Path:
    """The folder of a library; says where its edit lies now, and what to load."""
    pipeline = library.run.place("pipeline")
    shown = f"DiffusionPipeline.from_pretrained({relative_to_project(pipeline)!r}) loads it."
    if not pipeline.is_dir():
        export = f"erase.py export --run {quote(relative_to_project(library.folder))} --format pipeline"
        shown = f"For a pipeline: {export}; then {shown}"
    if not own_rank():
        edit = relative_to_project(library.run.place("edit"))
        screen().print(f"The edit is now {edit}. {shown}", highlight=False, soft_wrap=True)
    return library.folder


def _at(library: Library, pretrained: str | None, layout: str | None) -> Library:
    """The library with the place where its base is now, which is checked."""
    return replace(library, run=Base.load(library.run, pretrained, layout).run)


def _history(run: str) -> History:
    """What was done to a library.

    Raises:
        UserError: it is none, or its history is damaged.
    """
    history = History.load(resolve(run))
    if not history.events:
        raise UserError(f"run={Library.open(run).folder} is no library yet: add, remove or replace make it one.")
    return history


def _refuse_unknown(library: Library, targets: Sequence[str], setting: str) -> None:
    for target in targets:
        if target not in library.run.targets:
            known = library.run.targets
            raise UserError(
                f"{setting}: {target!r} is not in {library.folder}, which holds {', '.join(known)}."
                + nearest(target, known)
            )
