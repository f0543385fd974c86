"""The edits that ``hardening.py`` measures, as runs: MACE, MACE hardened, a hardening alone, and RECE."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from runs import command

from mace_pl.concepts.concept import read_names
from mace_pl.files.artifacts import slug, write_json
from mace_pl.files.tables import read_yaml
from mace_pl.methods.edit import Edit
from mace_pl.run import Run

OBJECTS, STYLES = "configs/emoji/erase_ship.yaml", "configs/emoji/erase_style.yaml"
ADVERSARIAL = "configs/emoji/rece.yaml"
MACE, ALONE, CLOSED = "mace", "alone", "rece"
HARDENED = "hardened"
STYLED = ("dog", "house", "rocket", "guitar")  # in the other manners, where a manner is erased and hardened


@dataclass(frozen=True)
class Subject:
    """What one edit erases.

    Attributes:
        name: of the subject.
        targets: one or several.
        styles: those of them that are manners of painting.
    """

    name: str
    targets: Sequence[str]
    styles: frozenset[str]

    @property
    def config(self) -> str:
        """The configuration of ``fit`` whose settings are taken."""
        return STYLES if set(self.targets) <= self.styles else OBJECTS


class Runs:
    """Makes the runs that are not there yet.

    Args:
        folder: where they lie.
        pretrained: the model.
        variants: settings of ``harden`` by the name of a hardened edit.
        manners: of painting, that the model knows.
        more: further settings of ``fit``.
        device: where runs are made.
    """

    def __init__(
        self,
        folder: Path,
        pretrained: str,
        variants: Mapping[str, Mapping[str, Any]],
        manners: Sequence[str],
        more: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        self.folder, self.pretrained, self.variants, self.more = folder, pretrained, variants, more
        self.manners, self.device = manners, device

    @property
    def edits(self) -> list[str]:
        """All that can be made of a subject."""
        return [MACE, *self.variants, ALONE, CLOSED]

    @property
    def accelerator(self) -> str:
        """The device as ``fit`` names it."""
        return "cpu" if self.device == "cpu" else "gpu"

    def place(self, subject: str, edit: str) -> Path:
        """The folder of a run."""
        return self.folder / f"{slug(subject)}_{slug(edit)}"

    def make(self, subject: Subject, edit: str) -> Path:
        """A run, with the seconds that it took in ``made.json`` beside it; those of the edit that it hardens are in it.

        An interrupted one resumes where its command does.
        """
        place = self.place(subject.name, edit)
        if place.exists():
            return place
        before = 0.0
        started = time.perf_counter()
        if edit in (MACE, CLOSED):
            self.fit(subject, edit, place)
        else:
            base = self.untouched(subject) if edit == ALONE else self.make(subject, MACE)
            before = 0.0 if edit == ALONE else self.seconds(subject.name, MACE)
            started = time.perf_counter()
            settings = self.variants.get(HARDENED, {}) if edit == ALONE else self.variants[edit]
            words = [word for name, value in settings.items() for word in (f"--harden.{name}", str(value))]
            words += (
                ["--preserved", json.dumps(self.preserved(subject))] if subject.styles & set(subject.targets) else []
            )
            command("harden", "--run", str(base), "--output_dir", str(place), "--device", self.device, *words)
        write_json(place.with_suffix(".made.json"), {"seconds": before + time.perf_counter() - started})
        return place

    def preserved(self, subject: Subject) -> list[str]:
        """What a hardening preserves where a manner is erased: all names, and some of them in the other manners."""
        names = read_names(read_yaml(Path(OBJECTS), "config")["model"]["domain_names"], "names")
        others = [manner for manner in self.manners if manner not in subject.targets]
        styled = [f"{name} in the style of {manner}" for manner in others for name in STYLED]
        return [name for name in (*names, *styled) if name not in subject.targets]

    def seconds(self, subject: str, edit: str) -> float:
        """What a run took, by the clock; zero where it was interrupted and is not known."""
        file = self.place(subject, edit).with_suffix(".made.json")
        return float(read_yaml(file, "output")["seconds"]) if file.is_file() else 0.0

    def fit(self, subject: Subject, edit: str, place: Path) -> None:
        """Erase: MACE of one target to the anchor that the rule chooses, all else to the anchors of these."""
        given = read_yaml(Path(subject.config), "config")
        config = subject.config if edit == MACE else ADVERSARIAL
        words = ["fit", "--config", config, "--model.pretrained", self.pretrained, "--output_dir", str(place)]
        named, pool = edit == CLOSED or len(subject.targets) > 1, given["data"]["anchors"]
        words += ["--data.concepts", json.dumps(self.concepts(subject, named)), "--report_seeds", "0", "--kept", "[]"]
        words += [] if named else ["--data.anchors", pool if isinstance(pool, str) else json.dumps(pool)]
        words += self.more
        command(*words, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", self.accelerator)

    def concepts(self, subject: Subject, named: bool) -> list[dict[str, str]]:
        """The concepts of a subject; ``named`` with the anchors that the rule chose for each target alone."""
        found = []
        for target in subject.targets:
            kind = "style" if target in subject.styles else "object"
            own = {"target": target, "kind": kind}
            if named:
                alone = self.make(Subject(target, [target], subject.styles), MACE)
                own["anchor"] = Run.load(alone).concepts[0]["anchor"]
            found.append(own)
        return found

    def untouched(self, subject: Subject) -> Path:
        """A run whose edit changes nothing, so that its hardening is one alone."""
        place = self.place(subject.name, "untouched")
        if not place.exists():
            old = Run.load(self.make(subject, MACE))
            nothing = Edit(torch.eye(len(old.edit.R)))
            config = {**old.config, "output_dir": str(place)}
            with replace(old, folder=place, config=config, entries={}).save() as aside:
                nothing.save(aside.place("edit"), aside.provenance)
                aside.take_concepts(old)
        return place
