"""What the tables of the bundled model erase, and by which configuration: the sets of configs/compare/tables.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compared import Method, Vocabulary, read_vocabularies
from runs import command

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.preservation import BY_NUMBER
from mace_pl.files.tables import read_yaml


@dataclass(frozen=True)
class Set:
    """What is erased by a configuration.

    Attributes:
        table: where its row goes.
        name: of the row.
        vocabulary: what is generated and judged.
        config: the configuration of ``fit``.
        targets: in place of its concepts, with its kind and ``anchor: auto``.
        changes: other settings, by the names of the comparison; ``class`` is the method's.
        times: factors of settings.
        alone: nothing but the targets is given to ``fit``: it chooses what it preserves, anchors and weights.
        hardened: likewise, but ``--model.harden "{}"`` is given too.
    """

    table: str
    name: str
    vocabulary: str
    config: str
    targets: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False
    hardened: bool = False

    def curve(self) -> str:
        """What is written at its point of the trade-off: how the weight of the domain is multiplied; or nothing."""
        factor = next(iter(self.times.values()), 1.0)
        return f"× {factor:g}" if {*self.changes} <= {"class"} else ""

    def settings(self) -> str:
        """Where the settings come from."""
        if self.alone:
            return "nothing but targets" + (", hardened" if self.hardened else "")
        return self.config

    def given(self) -> dict[str, Any]:
        """The configuration."""
        content: dict[str, Any] = read_yaml(Path(self.config), "config")
        return content

    def concepts(self) -> list[Concept]:
        """What is erased."""
        own = self.given()["data"]["concepts"]
        if not self.targets:
            return [Concept(**concept) for concept in own]
        return [Concept(target, kind=own[0].get("kind", "object")) for target in self.targets]

    def ordered(self, pretrained: str, folder: Path, *more: str) -> Path:
        """The run that ``fit`` makes of the targets and no other setting, unless it is there."""
        if not folder.exists():
            names = json.dumps([{"target": concept.target, "kind": concept.kind} for concept in self.concepts()])
            where = ["--model.pretrained", pretrained, "--output_dir", str(folder)]
            quiet = ["--report_seeds", "0", "--save_pipeline", "false", "--trainer.enable_progress_bar", "false"]
            harden = ["--model.harden", "{}"] if self.hardened else []
            command("fit", "--data.concepts", names, *where, *quiet, *harden, *more)
        return folder

    def method(self) -> Method:
        """The settings as those of a method."""
        config = self.given()
        model, data = config["model"], config["data"]
        settings: dict[str, Any] = {"lr": model["lr"]}
        for stage, own in zip(("refine", "fuse"), BY_NUMBER, strict=True):
            settings |= {f"{stage}.{term}": weight for term, weight in (model.get(stage) or vars(own)).items()}
        kept = ("concepts", "anchors")
        settings |= {f"data.{name}": value for name, value in data.items() if name not in kept}
        settings |= {name: float(f"{settings[name] * factor:.3g}") for name, factor in self.times.items()}
        changes = dict(self.changes)
        class_path = f"mace_pl.methods.{changes.pop('class', 'Mace')}"
        return Method(f"{Path(self.config).stem}, {self.name}", class_path, {**settings, **changes}, {})


def read_tables(file: Path) -> tuple[dict[str, Vocabulary], dict[str, list[Set]]]:
    """The vocabularies, and the sets of each table."""
    content = read_yaml(file, "file")
    sets = {
        table: [
            Set(table, name, **{**given, "targets": tuple(given.get("targets", ()))}) for name, given in own.items()
        ]
        for table, own in content["tables"].items()
    }
    return read_vocabularies(content, file), sets
