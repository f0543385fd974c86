"""Changes of a library: a run becomes one with its first change, and each change is one renamed file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mace_pl.concepts.concept import Concept, read_concepts, templates_of
from mace_pl.concepts.preservation import statistics_of
from mace_pl.errors import UserError
from mace_pl.files.artifacts import written_aside
from mace_pl.files.owned import RECORD
from mace_pl.files.paths import resolve
from mace_pl.files.versions import ADDING, ENTRIES, LIBRARY, REFINEMENTS, RESTORE, STATES, read_state
from mace_pl.files.writer import LOCK, WRITER
from mace_pl.library.history import Event, History, Note
from mace_pl.library.states import (
    Base,
    Members,
    check_whole,
    members_of,
    refinement_of,
    solve_state,
    state_id,
    write_state,
)
from mace_pl.library.store import Entry, store_entry, store_refinement, take_tree
from mace_pl.methods.chosen import chosen
from mace_pl.run import Run
from mace_pl.stages.again import model_of
from mace_pl.version import __version__

OWN = (LIBRARY, LOCK, WRITER, STATES, ENTRIES, REFINEMENTS, ADDING)


@dataclass(frozen=True)
class Library:
    """A library, or a run that becomes one with its first change.

    Attributes:
        folder: where it lies.
        run: its current state.
        history: what was done; empty of a run that is none yet.
    """

    folder: Path
    run: Run
    history: History

    @staticmethod
    def open(run: str, setting: str = "run") -> Library:
        """Read a library or a run; nothing is written.

        Args:
            run: its folder.
            setting: the option that named it, for messages.

        Raises:
            UserError: none is named, neither is there, it has no configuration or sums, or it is hardened.
        """
        if not run.strip():
            raise UserError(f"{setting} is empty. Name the folder of a library, or the output folder of fit or fuse.")
        found, folder = Run.load(run, setting), resolve(run)
        if found.home != found.folder and folder.resolve() != found.home.resolve():
            raise UserError(f"{setting}={run} is a state of the library {found.home}. Give the library itself.")
        if found.hardened:
            raise UserError(
                f"{setting}={run} is hardened, for the edit as it is. Change the run that it was made from, and harden "
                f"the library then."
            )
        model_of(found)
        history = History.load(folder)
        if history.events:
            check_whole(found.folder)
        unknown = [target for target in found.targets if history.events and target not in history.notes()]
        if unknown:
            raise UserError(f"run: {folder / LIBRARY} is damaged: it does not say how {unknown[0]!r} came. {RESTORE}")
        return Library(folder, found, history)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration of the run that became the library, with the place where the base is now."""
        first = self.run
        if self.history.events:
            first = Run.load(self.folder / STATES / self.history.events[0].state)
        return {**first.config, "model": self.run.base.applied(first.config["model"])}

    @property
    def members(self) -> Members:
        """The entries of the current state."""
        return members_of(self.run)

    def founded(self, base: Base) -> Library:
        """The library with its first state, the run's folder as it is; itself where it is one already.

        Raises:
            UserError: a file of the run cannot be read.
        """
        if self.history.events:
            return self
        run = base.run
        entries = store_run(self.folder, base, run, concepts_of(run))
        weights = dict(run.fused.weights) if run.fused else {}
        members, settings = Members(entries, weights), base.settings()
        name = state_id(members, settings)
        folder = self.folder / STATES / name
        if not folder.is_dir():
            files = [file(target) for target in run.targets for file in (run.statistics_file, run.lora_file)]
            known = [file.relative_to(run.folder).as_posix() for file in files]
            with written_aside(folder) as aside:
                take_tree(run.folder, aside, [*OWN, *known])
                write_state(aside, members, settings, dict.fromkeys(members.targets))
        added = first_notes(run, entries)
        event = Event("fuse" if run.fused else "fit", name, date=date_of(run), targets=run.targets, added=added)
        return replace(self, run=Run.load(folder), history=History([event]))

    def changed(self, base: Base, members: Members, event: Event, said: bool = True) -> Library:
        """Solve the edit of other entries, and make it the current state.

        Args:
            base: the model.
            members: the entries.
            event: what was done; its ``state`` is set here.
            said: log what is preserved; not where a training has just done so.

        Raises:
            UserError: nothing is left, or the system is singular.
        """
        if not members.entries:
            raise UserError("nothing would be left in the library. Use the original model instead.")
        name = solve_state(self.folder, base, members, said)
        return self.committed(replace(event, state=name))

    def committed(self, event: Event) -> Library:
        """With one more event, written.

        Raises:
            UserError: its state is not whole; nothing is written.
        """
        run = Run.load(self.folder / STATES / event.state)
        model_of(run)
        check_whole(run.folder)
        history = self.history.then(event)
        history.save(self.folder)
        self.tidy()
        return replace(self, history=history, run=run)

    def tidy(self) -> None:
        """Remove from the library's folder what its first state holds now, and what was trained for a change."""
        shutil.rmtree(self.folder / ADDING, ignore_errors=True)
        first = self.folder / STATES / self.history.events[0].state
        try:
            names = read_state(first)["entries"]
        except UserError:  # lost or damaged: what lies beside it may be all that is left of it
            return
        before = Run(self.folder, self.run.base, [])
        known = {file(target) for target in names for file in (before.statistics_file, before.lora_file)}
        known.add(self.folder / RECORD)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            inside = path.relative_to(self.folder)
            if inside.parts[0] in OWN:
                continue
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # files of others
                    path.rmdir()
            elif path in known or _same(path, first / inside):
                path.unlink()


def _same(path: Path, other: Path) -> bool:
    """Whether two files are one, or have the same content."""
    if not other.is_file():
        return False
    return path.samefile(other) or path.read_bytes() == other.read_bytes()


def date_of(run: Run) -> str:
    """When the edit of a run was written, in UTC: by its report, for the date of a file is that of its copy."""
    file = Run.edit_in(run.folder)
    assert file is not None
    with suppress(OSError, ValueError, KeyError):
        said = json.loads(run.progress.read_text(encoding="utf-8"))["updated"]
        return datetime.fromisoformat(said).isoformat(timespec="seconds")
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def first_notes(run: Run, contents: Mapping[str, str]) -> dict[str, Note]:
    """What is said of the entries that a run brings, by target."""
    return {target: Note(content, date_of(run), scores=scores_of(run, target)) for target, content in contents.items()}


def concepts_of(run: Run) -> list[Concept]:
    """The concepts of a run with the user's images, which its edit does not name."""
    given = (run.config.get("data") or {}).get("concepts")
    known: dict[str, Concept] = {}
    with suppress(UserError):  # a file of concepts that is not there any more
        known = {concept.target: concept for concept in read_concepts(given)} if given else {}
    return [known.get(c["target"], Concept(**c)) for c in run.concepts]


def prompts_of(run: Run, concepts: Sequence[Concept]) -> dict[str, list[str]]:
    """The templates of a run's concepts; none where its file of templates is not there any more."""
    given = (run.config.get("data") or {}).get("templates")
    try:
        return dict(zip((c.target for c in concepts), templates_of(given, concepts), strict=True))
    except UserError:
        return {}


def scores_of(run: Run, target: str) -> Mapping[str, float] | None:
    """How often a target was seen in its images before and after its run; None without a judge."""
    if not run.metrics.is_file():
        return None
    seen = json.loads(run.metrics.read_text(encoding="utf-8")).get("accuracy", {})
    return {when: names[target] for when, names in seen.items() if target in names} or None


def store_run(library: Path, base: Base, run: Run, concepts: Sequence[Concept]) -> dict[str, str]:
    """Take the concepts of a run into a library; returns the hash of each by its target.

    Args:
        library: its folder.
        base: the model.
        run: a run of ``fit``, or one that was fused again, of whose LoRAs it is not known on what they were trained.
        concepts: those of the run.
    """
    model = model_of(run)
    trained = chosen(model.get("method")).trains
    refinement = None
    if trained and run.fused is None:
        refinement = store_refinement(library, refinement_of(base, run), run.base.provenance)
    files = statistics_of(model.get("prior"), model.get("domain"))
    hashes = {"text_encoder": run.base.text_encoder, "unet": run.base.unet}
    made_from = {**hashes, "statistics": files, "seed": run.seed, "version": __version__}
    prompts = prompts_of(run, concepts)
    return {
        concept.target: store_entry(library, run, Entry(concept, prompts.get(concept.target), refinement, made_from))
        for concept in concepts
    }
