"""Strengths that were found on the page, as a state of a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mace_pl.errors import UserError
from mace_pl.library.change import Library
from mace_pl.library.history import STRENGTHS, Event
from mace_pl.library.lock import changing
from mace_pl.library.states import Base, Members
from mace_pl.run import Run


@dataclass(frozen=True)
class Saved:
    """What the page knows of the run on the disk.

    Attributes:
        run: as it was opened, or the state that was saved last.
        entries: hash of the content of every target, of those that were left out too; empty before the first save.
    """

    run: Run
    entries: Mapping[str, str]


def save_state(
    last: Saved, base: Base, strengths: Mapping[str, float], reason: str | None, requester: str | None
) -> Saved:
    """Make strengths the current state of the library; a run becomes one by that.

    Args:
        last: what is on the disk.
        base: the model with its original weights, and the run that was opened.
        strengths: in [0, 1] by target; a target that is not named is left out.
        reason: why; free text.
        requester: who asked for it; free text.

    Raises:
        UserError: no target is left, nothing has changed, or someone else has changed or is writing the library.
    """
    home = last.run.home
    with changing(home):
        library = Library.open(str(home))
        if library.run.folder.resolve() != last.run.folder.resolve():
            raise UserError(f"run: {home} has been changed by another command. Start studio again to see its state.")
        before = library.run.fused.weights if library.run.fused else {}
        known = {target: before.get(target, 1.0) for target in library.run.targets}
        changed = [t for t in dict.fromkeys([*known, *strengths]) if known.get(t) != strengths.get(t)]
        if not changed:
            raise UserError("strengths: they are those of the current state already. Move a slider first.")
        if not strengths:
            raise UserError("strengths: nothing would be left in the library. Tick a target.")
        library = library.founded(base)
        entries = last.entries or library.members.entries
        members = Members({target: entries[target] for target in strengths}, dict(strengths))
        event = Event(STRENGTHS, targets=tuple(changed), reason=reason or None, requester=requester or None)
        return Saved(library.changed(at_base(base, library.run), members, event).run, entries)


def at_base(base: Base, run: Run) -> Base:
    """The base with a state of the library, which says how it is edited, and the place where the base is now."""
    model = base.run.base.applied(run.config["model"])
    return replace(base, run=replace(run, base=base.run.base, config={**run.config, "model": model}))
