"""What a run shows: the same seeds before and after, scores of both, losses, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from mace_pl.callbacks.protocols import ErasureModule
from mace_pl.concepts.concept import Concept
from mace_pl.concepts.templates import IMAGE_TEMPLATE
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.reach_rows import add_to_summary
from mace_pl.files.artifacts import write_json
from mace_pl.files.markdown import SUMMARY, markdown_table
from mace_pl.images.labelled_grid import labelled_grid
from mace_pl.images.protocols import RunData
from mace_pl.images.stored import ORIGINALS, Row, StoredImages, inputs_of
from mace_pl.models.pipeline import scheduled
from mace_pl.models.sampling import generate
from mace_pl.training.progress import image_progress
from mace_pl.training.trainer import gathered, shows_progress

MAX_COLUMNS = 10  # of the before/after image
SHOWN = 4  # preserved names that it shows where none are given


class Report:
    """Generates images of targets and preserved names before and after, and scores both.

    Args:
        concepts: what is erased.
        preserved: names to preserve.
        classifier: folder of the CLIPModel that says which of the names and anchors an image shows; no scores when
            None.
        seeds: images per name; the first one is shown.
        styles: those of the names that are styles, which are asked for as such and are nothing that is seen.
        stores: whether images of the original are written where later runs take them.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        preserved: Sequence[str],
        classifier: str | None,
        seeds: int,
        styles: Sequence[str] = (),
        stores: bool = True,
    ) -> None:
        self.concepts = list(concepts)
        self.preserved = [name for name in preserved if name not in {c.target for c in concepts}]
        self.names = [c.target for c in self.concepts] + self.preserved
        kinds = [c.kind for c in self.concepts]
        other = "person" if set(kinds) == {"person"} else "object"
        kinds += ["style" if name in styles else other for name in self.preserved]
        self.prompts = [IMAGE_TEMPLATE[kind].replace("{}", name) for kind, name in zip(kinds, self.names, strict=True)]
        self.seeds, self.stores = seeds, stores
        #: names that a classifier can tell apart: a style is not one more thing that is seen
        self.classes = [name for kind, name in zip(kinds, self.names, strict=True) if kind != "style"]
        # what stands in a target's place is an answer too: else a house is taken for the next of the names, a ship
        anchors = dict.fromkeys(c.anchor for c in self.concepts if c.kind != "style" and c.anchor)
        others = [anchor for anchor in anchors if anchor not in self.classes]
        others = others or ([""] if len(self.classes) == 1 else [])
        self.judge = ClipClassifier(classifier, [*self.classes, *others]) if classifier and self.classes else None
        self.images: dict[str, list[Image.Image]] = {}
        self.accuracy: dict[str, dict[str, float]] = {}

    def look(self, when: str, module: ErasureModule, trainer: Trainer) -> None:
        """Generate every name with every seed by the model as it is now, each rank a share, and score what is seen."""
        data: RunData = trainer.datamodule  # type: ignore[attr-defined]
        rank, world = trainer.global_rank, trainer.world_size
        named = zip(self.names, self.prompts, strict=True)
        rows = [(name, prompt, k) for name, prompt in named for k in range(self.seeds)]
        share = rows[rank::world]
        if not rows:
            self.images[when] = []
            return
        label = f"images {when}"
        chosen = scheduled(module.pipeline, data.image_scheduler, "data.image_scheduler")
        with chosen, image_progress(shows_progress(trainer), label, len(share)) as progress:

            def made(asked: Sequence[Row]) -> list[Image.Image]:
                prompts, seeds = [prompt for prompt, _ in asked], [seed for _, seed in asked]
                settings = (data.image_steps, data.image_guidance, data.images_per_batch)
                return generate(module.pipeline, prompts, seeds, *settings, progress=progress)

            asked = [(prompt, module.seed + k) for _, prompt, k in share]
            stored = self.originals(module, data) if when == "before" and self.stores else None
            generated = made(asked) if stored is None else stored.all_of(asked, made, progress)
        images: list[Any] = [None] * len(rows)
        for other, part in enumerate(gathered(trainer, generated)):
            images[other::world] = part
        self.images[when] = images[:: self.seeds]
        if self.judge is None:
            return
        seen = self.judge(images).argmax(-1).tolist()
        right: dict[str, list[bool]] = {name: [] for name in self.classes}
        for (name, _, _), index in zip(rows, seen, strict=True):
            if name in right:
                right[name].append(index == self.classes.index(name))
        self.accuracy[when] = {name: sum(hits) / len(hits) for name, hits in right.items()}

    def ready(self, module: ErasureModule, data: RunData) -> int:
        """How many images of the original model earlier runs have left."""
        if not self.seeds:
            return 0
        with scheduled(module.pipeline, data.image_scheduler, "data.image_scheduler"):
            stored = self.originals(module, data)
        rows = [(prompt, module.seed + k) for prompt in self.prompts for k in range(self.seeds)]
        return sum(stored.path(row).is_file() for row in rows)

    def originals(self, module: ErasureModule, data: RunData) -> StoredImages:
        """The images of the original model that earlier runs have left."""
        made = {"unet": module.unet_hash, "text_encoder": module.fingerprint}
        inputs = inputs_of(module.pipeline, made, data.image_steps, data.image_guidance)
        return StoredImages(data.pictures / ORIGINALS, inputs)

    def mean(self, when: str, names: Sequence[str]) -> float | None:
        """Mean accuracy over the names that are classes."""
        accuracies = [self.accuracy[when][n] for n in names if n in self.accuracy.get(when, {})]
        return sum(accuracies) / len(accuracies) if accuracies else None

    def rows(self, losses: Mapping[str, Sequence[float]]) -> list[list[str]]:
        """Cells of the closing table: one row per target, then the preserved names in one."""
        rows = []
        for c in self.concepts:
            values = losses.get(c.target, ())
            change = "{:.2f} → {:.2f}".format(*ends(values)) if values else "–"
            rows.append([c.target, c.anchor, c.kind, change, self.change([c.target])])
        if self.preserved:
            rows.append([f"preserved ({len(self.preserved)})", "", "", "", self.change(self.preserved)])
        return rows

    def change(self, names: Sequence[str]) -> str:
        """How often the names were seen in their images, before and after."""
        before, after = self.mean("before", names), self.mean("after", names)
        return "–" if before is None or after is None else f"{before:.0%} → {after:.0%}"

    def write(self, folder: Path, losses: Mapping[str, Sequence[float]], reach: Mapping[str, Any]) -> None:
        """Before/after image, loss curves, metrics and a summary, with what is known without an image."""
        folder.mkdir()
        if self.images["after"]:
            self.write_images(folder / "before_after.png")
        if losses:
            write_losses(folder / "losses.png", losses)
        means_of = {t: dict(zip(("first_loss", "last_loss"), ends(v), strict=True)) for t, v in losses.items()}
        steps = {t: {**means_of[t], "steps": len(v)} for t, v in losses.items()}
        groups = {"targets": [c.target for c in self.concepts], "kept": self.preserved}
        means = {when: {g: self.mean(when, names) for g, names in groups.items()} for when in self.accuracy}
        content = {"losses": steps, "prompts": self.prompts, "seeds": self.seeds}
        write_json(folder / "metrics.json", content | {"accuracy": self.accuracy, "mean_accuracy": means})
        note = shown_of(len(self.names) if self.images["after"] else 0)
        caption = f"\nbefore_after.png: {note}\n" if note else ""
        summary = f"# Erased concepts\n\n{markdown_table(COLUMNS, self.rows(losses))}\n{caption}"
        (folder / SUMMARY).write_text(summary, encoding="utf-8")
        add_to_summary(folder / SUMMARY, reach)

    def write_images(self, path: Path) -> None:
        """Original row above edited row, one column per name, with the prompts above."""
        erased = [c.target for c in self.concepts]
        edited = f"erased {erased[0] if len(erased) == 1 else f'{len(erased)} concepts'}"
        rows = {name: self.images[when][:MAX_COLUMNS] for name, when in (("original", "before"), (edited, "after"))}
        labelled_grid(rows, self.prompts[:MAX_COLUMNS], shown_of(len(self.names))).save(path)

    def show_table(self, losses: Mapping[str, Sequence[float]], console: Console) -> None:
        """The closing table."""
        table = Table(title="Erased")
        for column in COLUMNS:
            table.add_column(column)
        for row in self.rows(losses):
            table.add_row(*row)
        console.print(table)


COLUMNS = ("target", "anchor", "kind", "loss, first → last tenth", "seen, before → after")


def ends(losses: Sequence[float]) -> tuple[float, float]:
    """The mean losses of the first and of the last tenth of the steps, at least one: a single step is noisy."""
    count = max(1, len(losses) // 10)
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


def shown_of(names: int) -> str:
    """What the before/after image says of the names that it does not show; empty where it shows all."""
    return f"The first {MAX_COLUMNS} of {names} names." if names > MAX_COLUMNS else ""


def write_losses(path: Path, losses: Mapping[str, Sequence[float]]) -> None:
    """The loss of each concept over its steps."""
    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)  # draws without a screen, and without touching the caller's pyplot
    axes = figure.subplots()
    for target, values in losses.items():
        axes.plot(values, label=target)
    axes.set(xlabel="step", ylabel="attention loss")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
