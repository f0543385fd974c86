"""The states of a library: which entries, how they are fused, and the edit that this gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mace_pl.concepts.preservation import StageWeights
from mace_pl.errors import UserError
from mace_pl.export.formats import Finished
from mace_pl.files.artifacts import read_metadata, write_json
from mace_pl.files.identity import identity
from mace_pl.files.owned import recorded
from mace_pl.files.versions import ENTRIES, STATE, STATES, mend, read_state
from mace_pl.library.store import read_entry, refinement_file
from mace_pl.methods.chosen import chosen
from mace_pl.methods.closed_form import metric, moved_by
from mace_pl.methods.edit import Edit, SumsOnDisk
from mace_pl.models.backbone import backbone_of
from mace_pl.models.cross_attention import is_value
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.run import PLACES, Fused, Run
from mace_pl.stages.again import model_of, solve_again, wanted_of
from mace_pl.stages.preserve import inputs_of
from mace_pl.stages.refine import solve


@dataclass(frozen=True)
class Members:
    """The entries of a state.

    Attributes:
        entries: hash of the content by target.
        weights: erasure strength by target; 1 where a target is not named.
    """

    entries: Mapping[str, str]
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        """In the one order in which they are summed, whatever order they were added in."""
        return sorted(self.entries, key=lambda target: (target.casefold(), target))

    def within(
        self,
        added: Mapping[str, str] | None = None,
        removed: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
    ) -> Members:
        """With some entries more, or others in their place, and without some; ``weights`` are strengths of the new."""
        entries = {t: c for t, c in {**self.entries, **(added or {})}.items() if t not in removed}
        return Members(entries, {t: w for t, w in {**self.weights, **(weights or {})}.items() if t in entries})


@dataclass(frozen=True)
class Base:
    """The base model of a library, loaded and checked.

    Attributes:
        pipeline: the original model.
        source: its files.
        run: the state or run that says how it is edited, with the place where the base is now.
    """

    pipeline: Pipeline
    source: Source
    run: Run

    @staticmethod
    def load(run: Run, pretrained: str | None = None, layout: str | None = None) -> Base:
        """The base of a run.

        Raises:
            UserError: it is not there, or another one.
        """
        pipeline, source, base = run.base.load(pretrained, layout)
        model = base.applied(run.config.get("model", {}))
        return Base(pipeline, source, replace(run, base=base, config={**run.config, "model": model}))

    @property
    def way(self) -> str:
        """``fused``, ``added`` or ``refined``."""
        trains = chosen(self.run.config["model"].get("method")).trains
        return self.run.fused.method if self.run.fused else "fused" if trains else "refined"

    def settings(self) -> dict[str, Any]:
        """All that decides what is solved from given entries; files by their hashes."""
        model = model_of(self.run)
        method = chosen(model.get("method"))
        stages = [StageWeights(**model[stage]) for stage in ("refine", "fuse")]
        told = inputs_of(model, stages, wanted_of(self.pipeline, model, method), method)
        hashes = {"text_encoder": self.run.base.text_encoder, "unet": self.run.base.unet}
        own = {"method": repr(method), "way": self.way, "fuse": stages[1].told()}
        return {**hashes, **told, **own}


def check_whole(folder: Path) -> None:
    """Refuse a state whose edit is not all there; exports beside it may be removed.

    Raises:
        UserError: naming the file that is not there, or cannot be read.
    """
    written = recorded(folder)
    for name in (PLACES["edit"], PLACES["refined"]):
        file = folder / name
        if file.is_file():
            read_metadata(file, "run")
        elif file in written:
            raise UserError(f"run: {file} is not there. {mend(file)}")


def members_of(run: Run) -> Members:
    """The entries of a state."""
    said = read_state(run.folder)
    return Members(said["entries"], said["weights"])


def moved_of(run: Run) -> dict[str, float | None]:
    """By target, how far the refinement has moved its tokens: :func:`moved_since`."""
    moved: dict[str, float | None] = read_state(run.folder)["moved"]
    return moved


def strengths_of(members: Members) -> dict[str, float]:
    """The strengths that count, in one order: 1 is that of any target."""
    return {target: members.weights[target] for target in members.targets if members.weights.get(target, 1) != 1}


def state_id(members: Members, settings: Mapping[str, Any]) -> str:
    """The id of a state: entries and settings, and neither their order nor when and why they came."""
    return identity({"entries": dict(members.entries), "weights": strengths_of(members), "settings": settings})


def write_state(aside: Path, members: Members, settings: Mapping[str, Any], moved: Mapping[str, float | None]) -> None:
    """What a state says of itself; ``moved`` by target: :func:`moved_since`."""
    content = {"entries": dict(members.entries), "weights": strengths_of(members), "moved": dict(moved)}
    write_json(aside / STATE, {**content, "settings": settings})


def solve_state(library: Path, base: Base, members: Members, said: bool = True) -> str:
    """Solve the edit of some entries and write the state, unless it is there; returns its id.

    Args:
        library: its folder.
        base: the model, and how it is edited.
        members: the entries.
        said: log what is preserved.

    Raises:
        UserError: an entry that cannot be read, or a singular system.
    """
    settings = base.settings()
    name = state_id(members, settings)
    folder = library / STATES / name
    if folder.is_dir():
        return name
    entries = {target: read_entry(library, members.entries[target]) for target in members.targets}
    model, data = base.run.config["model"], base.run.config.get("data") or {}
    templates = {target: list(entry.templates) for target, entry in entries.items() if entry.templates}
    data = {**data, "concepts": [vars(entry.concept) for entry in entries.values()], "templates": templates or None}
    concepts = [{name: getattr(e.concept, name) for name in ("target", "anchor", "kind")} for e in entries.values()]
    fused = Fused(base.way, strengths_of(members), model["refine"], model["fuse"])
    places = {target: library / ENTRIES / content for target, content in members.entries.items()}
    run = replace(
        base.run,
        folder=folder,
        concepts=concepts,
        fused=fused,
        entries=places,
        config={**base.run.config, "data": data},
    )
    solved = solve_again(run, run, base.pipeline, chosen(model.get("method")), said)
    full = all(weight == 1 for weight in members.weights.values())
    moved = moved_since(library, base, run, members, solved.refined if full else refinement_of(base, run))
    finished = Finished(run, base.pipeline, base.source, solved.edit, solved.original)
    with run.save() as aside:
        write_state(aside.folder, members, settings, moved)
        for form in ("edit", "refined"):
            finished.write(form, aside.place(form))
    return name


def refinement_of(base: Base, run: Run) -> Edit:
    """Stage 1 over all concepts of a run at full strength: the edit on which a run of ``fit`` trained its LoRAs."""
    sums, method = SumsOnDisk(), chosen(run.config["model"].get("method"))
    for target in run.targets:
        sums.add(target, run.concept(target)[0])
    return solve(base.pipeline, method, sums, wanted_of(base.pipeline, model_of(run), method), said=False)[0]


def moved_since(library: Path, base: Base, run: Run, members: Members, refined: Edit) -> dict[str, float | None]:
    """How far the refinement has moved the tokens of each target since its LoRA was trained.

    Args:
        library: its folder.
        base: the model.
        run: where the sums lie.
        members: the entries.
        refined: the refinement now, with all targets at full strength, as LoRAs are trained.

    Returns:
        By target, as a part of their keys and values then: :func:`mace_pl.methods.closed_form.moved_by`. None where no
        LoRA was trained, where it is not known on what, and for a method whose refinement is more than one matrix.
    """
    layers = backbone_of(base.pipeline).key_values()
    A = metric(W for name, W in layers.items() if is_value(name) or not refined.values_only)
    found: dict[str, float | None] = dict.fromkeys(members.targets)
    for target in members.targets:
        content = read_entry(library, members.entries[target]).refinement
        if content is None or refined.factors:
            continue
        then = Edit.load(refinement_file(library, content))
        if not then.factors and then.values_only == refined.values_only:
            found[target] = moved_by(then.R, refined.R, run.concept(target)[0].F_all, A)
    return found
