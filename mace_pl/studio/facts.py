"""What came from where, in words for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.files.markdown import markdown_table
from mace_pl.library.history import Event, History, Note
from mace_pl.models.pipeline import relative_to_project
from mace_pl.run import Run

if TYPE_CHECKING:
    from mace_pl.studio.session import Studio

SHORT = 12  # digits of a hash that are shown
WAYS = {
    "fused": "refinement and the closed-form fusion of the LoRAs",
    "added": "refinement, with the LoRAs simply added",
    "refined": "refinement alone",
}
COLUMNS = ("target", "anchor", "kind", "strength", "added", "why", "content")
NAMES = 8  # preserved names in the grid at first


def preserved_names(run: Run) -> list[str]:
    """Some names that the run preserves: those of its ``kept``, else the first that it preserves."""
    found = run.config.get("kept") or run.config.get("model", {}).get("domain_names") or []
    try:
        names = read_names(found, "domain_names")
    except UserError:  # a file that is not there any more
        names = []
    return [name for name in names if name not in run.targets][:NAMES]


def facts_of(studio: Studio) -> str:
    """The run, its base, and a table of its targets, in Markdown."""
    run, base = studio.run, studio.run.base
    history = History.load(run.home)
    state = f"state `{run.folder.name}`" if history.events else "no library yet: saving makes it one"
    hashes = [
        f"{part.replace('_', ' ')} `{(getattr(base, part) or 'unknown')[:SHORT]}`" for part in ("unet", "text_encoder")
    ]
    lines = [
        f"- Run: `{relative_to_project(run.home)}`, {state}",
        f"- Base model: `{base.name}`, {', '.join(hashes)}",
        f"- Edited by: {WAYS[studio.base.way]}",
    ]
    if history.events:
        made = history.events[history.made()]
        lines.append(f"- Last change: {made.action}, {made.date[:10]}" + (f", {said}" if (said := _why(made)) else ""))
    notes: Mapping[str, Note] = history.notes()
    rows = []
    for concept in run.concepts:
        target, note = concept["target"], notes.get(concept["target"])
        why = [note.date[:10], _why(note), f"`{note.content[:SHORT]}`"] if note else ["", "", ""]
        rows.append([target, concept["anchor"], concept["kind"], f"{studio.strengths[target]:g}", *why])
    return "\n".join([*lines, "", markdown_table(COLUMNS, rows)])


def _why(note: Note | Event) -> str:
    return "; ".join(part for part in (note.reason, f"by {note.requester}" if note.requester else None) if part)
