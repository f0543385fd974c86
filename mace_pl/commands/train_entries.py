"""Training of a library's entries, by ``fit`` with the settings of the run that became the library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from mace_pl.callbacks.before_after import check_seeds
from mace_pl.commands.lightning_commands import fit
from mace_pl.concepts import vocabulary
from mace_pl.concepts.concept import AUTO, Concept, read_concepts, read_names, templates_of
from mace_pl.concepts.names import clean_name
from mace_pl.concepts.templates import TEMPLATES, askable
from mace_pl.errors import UserError
from mace_pl.files.identity import identity
from mace_pl.files.paths import resolve
from mace_pl.files.screen import screen
from mace_pl.files.tables import read_yaml
from mace_pl.files.versions import ADDING
from mace_pl.library.change import Library, scores_of, store_run
from mace_pl.library.history import Event, Note
from mace_pl.library.states import Base, moved_of
from mace_pl.library.store import read_entry
from mace_pl.methods.chosen import chosen
from mace_pl.run import Run
from mace_pl.stages.again import model_of, wanted_of
from mace_pl.stages.anchors import Choice, choose_anchors

#: by what part of their size a target's keys and values may have moved; up to 0.29 was measured to cost nothing
RETRAIN_ABOVE = 0.3


def train_entries(
    library: Library, concepts: Sequence[Concept], templates: Any, event: Event, shown: Mapping[str, Any]
) -> Library:
    """Train concepts by themselves and make them entries, in place of those of the same targets.

    Args:
        library: where they come into.
        concepts: what is trained.
        templates: their prompts, as ``data.templates``; those of the library's run when None.
        event: what is done, and why.
        shown: settings of ``fit``'s report in place of those of the run: :func:`shown_by`.

    Returns:
        The changed library; on other ranks than the first the library as it was.

    Raises:
        UserError: a setting that cannot be used.
    """
    given = (library.settings.get("data") or {}).get("templates") if templates is None else templates
    concepts = anchored(library, concepts)
    own = {concept.target for concept in concepts}
    for concept in concepts:
        if concept.anchor in library.run.targets and concept.anchor not in own:
            screen().print(f"The anchor of {concept.target!r} is {concept.anchor!r}, which the library erases itself.")
    styled = any(concept.kind == "style" for concept in concepts)
    known = vocabulary.own_names(Base.load(library.run).source) if styled else []
    prompts = templates_for(given, concepts, askable(known, [*library.run.targets, *own]))
    made = fitted(library, concepts, prompts, shown)
    if own_rank():
        return library
    base = Base.load(library.run)
    library = library.founded(base)
    contents = store_run(library.folder, base, made, concepts)
    why = (event.date, event.reason, event.requester)
    added = {target: Note(content, *why, scores_of(made, target)) for target, content in contents.items()}
    event = replace(event, targets=tuple(contents), added=added)
    return library.changed(base, library.members.within(contents), event, said=False)


def anchored(library: Library, concepts: Sequence[Concept]) -> list[Concept]:
    """Concepts with their anchors, chosen where they name none: none of the library's other targets."""
    if all(concept.anchor != AUTO for concept in concepts):
        return list(concepts)
    base, config = Base.load(library.run), library.settings
    data, method = config.get("data") or {}, chosen(base.run.config["model"].get("method"))
    wanted = wanted_of(base.pipeline, model_of(base.run), method)
    names = list(dict.fromkeys([*wanted.names, *wanted.vocabulary, *(config.get("kept") or [])]))
    own = {concept.target for concept in concepts}
    beside = [target for target in library.run.targets if target not in own]
    images = [data[name] for name in ("image_steps", "image_guidance", "image_scheduler")]
    choice = Choice(read_names(data.get("anchors"), "data.anchors"), names, beside, config.get("classifier"), *images)
    found = choose_anchors(base.pipeline, concepts, choice, method.anchored)
    return [replace(concept, anchor=found.get(concept.target, concept.anchor)) for concept in concepts]


def train_again(library: Library, above: float | None) -> Library:
    """Train those LoRAs again, on the refinement of all entries, whose tokens it has moved by more than ``above``.

    That is a change of its own, after the one that moved it.
    """
    moved = moved_of(library.run) if above is not None else {}
    late = [target for target, far in moved.items() if far is not None and above is not None and far > above]
    if not late or own_rank():
        return library
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other ranks have ended with the training
        screen().print(f"To be trained again, on one device: {', '.join(late)} (moved by more than {above:g})")
        return library
    screen().print(f"Trained again, for the refinement has moved by more than {above:g}: {', '.join(late)}")
    entries = {target: read_entry(library.folder, library.members.entries[target]) for target in late}
    concepts = [entry.concept for entry in entries.values()]
    prompts = {target: list(entry.templates) for target, entry in entries.items() if entry.templates}
    unseen = shown_by([], 0)  # an entry keeps the scores of its own run
    made = fitted(library, concepts, templates_for(prompts, concepts), unseen, again=True)
    base, notes = Base.load(library.run), library.history.notes()
    contents = store_run(library.folder, base, made, concepts)
    added = {target: replace(notes[target], content=content) for target, content in contents.items()}
    event = Event("retrain", targets=tuple(late), reason=f"moved by more than {above:g}", added=added)
    return library.changed(base, library.members.within(contents), event, said=False)


def own_rank() -> int:
    """The rank of this process: 0 writes the library."""
    return int(getattr(rank_zero_only, "rank", 0))


def shown_by(kept: list[str] | None, report_seeds: int | None) -> dict[str, Any]:
    """Settings of ``fit`` for the report; none where it is that of the library's run.

    Raises:
        UserError: an empty name, or a number that no report has.
    """
    read_names(kept, "kept")
    check_seeds(report_seeds or 0)
    return {name: value for name, value in (("kept", kept), ("report_seeds", report_seeds)) if value is not None}


def fitted(
    library: Library,
    concepts: Sequence[Concept],
    templates: Mapping[str, list[str]],
    shown: Mapping[str, Any],
    again: bool = False,
) -> Run:
    """A run of ``fit`` for some concepts, in the library's folder; with ``again`` on the refinement of all entries."""
    config = library.settings
    data = {**config.get("data", {}), "concepts": [vars(c) for c in concepts], "templates": dict(templates)}
    model = {**config["model"], **({"beside": str(library.folder)} if again else {})}
    place = library.folder / ADDING / identity({"concepts": data["concepts"], "templates": templates})[:12]
    own = {"output_dir": str(place), "overwrite": True, "save_pipeline": False, "export": []}
    return fit({**config, **shown, "data": data, "model": model, **own})


def templates_for(given: Any, concepts: Sequence[Concept], names: Sequence[str] = ()) -> dict[str, list[str]]:
    """The prompts of some concepts; a mapping may name other targets too, and styles are asked for in the names."""
    if isinstance(given, str) and given.lower().endswith((".yaml", ".yml")):
        given = read_yaml(resolve(given), "templates", texts=True)
    targets = [concept.target for concept in concepts]
    if isinstance(given, Mapping):
        given = {name: t for name, t in given.items() if clean_name(name, "templates") in {*TEMPLATES, *targets}}
    return dict(zip(targets, templates_of(given, concepts, names), strict=True))


def refuse_unused(options: Mapping[str, Any]) -> None:
    """Refuse options of a training beside ``merge``."""
    for name, given in options.items():
        if given is not None:
            raise UserError(f"{name}={given} has no effect with --merge, which trains and shows nothing. Leave it out.")


def own_names(templates: Any) -> dict[str, str]:
    """What settings of ``fit`` are called here; those templates that are the run's keep their name."""
    own = {} if templates is None else {"data.templates": "templates"}
    return {"data.concepts": "concepts", **own}


def refuse_twice(library: Library, targets: Sequence[str]) -> None:
    """Refuse to add what is there, under the same name or one that differs in case alone."""
    own = {target.casefold(): target for target in library.run.targets}
    for target in targets:
        there = own.get(target.casefold())
        if there is not None:
            other = "" if there == target else f" as {there!r}"
            raise UserError(
                f"concepts: {target!r} is in {library.folder} already{other}. Make it anew with replace, or leave it "
                f"out."
            )
    named = [*library.run.targets, *targets]
    read_concepts([{"target": target, "anchor": target} for target in named])  # refuses those of one file name
