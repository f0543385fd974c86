"""Every table of the bundled model: single targets, animals, characters, manners, forty concepts, stages, trade-off.

Run it as ``python scripts/tables.py``; ``--tables "[ten, manners]"`` makes some of them only. What is erased, and by
which configuration, is in ``configs/compare/tables.yaml``. The settings in the configurations were chosen by CLIP on
seeds below 2000; the convolutional judge reports on seeds from 2000 on, and CLIP beside it. Two processes share the
work, one core each. What is done is kept in ``output`` and taken again, so that the command may be cut off. The tables
go to tables.md and into ``--page docs/results.md``; tables.html shows the worst images of each set.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from compare_methods import Cells, Record, check_same
from compared import Method, Targets, chosen
from compared_edits import Edits
from compared_images import REPORT, Images
from compared_page import Row, write_page
from runs import processor_seconds, run
from table_sets import Set, read_tables
from written import insert, plot, table

from mace_pl.concepts.concept import read_names
from mace_pl.evaluation.judges import CLIP
from mace_pl.files.artifacts import slug, written_aside
from mace_pl.files.tables import read_yaml
from mace_pl.models.pipeline import model_fingerprint
from mace_pl.run import Run

FILE = Path("configs/compare/tables.yaml")
PROCESSES = 2
#: imported once for all processes: they must be found without the folder of this script
LIBRARIES = [
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "lightning.pytorch",
    "peft",
    "torchmetrics",
]


@dataclass(frozen=True)
class Given:
    """What all tables are made with, as :func:`main` says."""

    pretrained: str
    judge: str
    steps: int
    guidance: float
    dtype: str
    output: Path
    file: Path


class Tables:
    """Makes what is missing of the tables.

    Args:
        given: what they are made with.
    """

    def __init__(self, given: Given) -> None:
        self.vocabularies, _ = read_tables(given.file)
        self.clip, output, look = f"{given.pretrained}/clip", given.output, (given.steps, given.guidance)
        prior, dtype = f"{given.pretrained}/statistics/prior.safetensors", getattr(torch, given.dtype)
        self.edits = Edits(given.pretrained, prior, output / "pictures", dtype)
        self.told = {name: getattr(given, name) for name in ("pretrained", "judge", "steps", "guidance", "dtype")}
        model = model_fingerprint(self.edits.pipeline)
        check_same(output / "settings.json", {**self.told, "model": model})
        self.images = {
            name: Images(self.edits.generating, own, given.judge, self.clip, output / slug(name), *look)
            for name, own in self.vocabularies.items()
        }
        keep = {name: list(own.keep) for name, own in self.vocabularies.items()}
        self.cells = Cells(output, self.edits, self.images, keep, 1)

    def original(self, vocabulary: str) -> None:
        """The images of the original."""
        self.edits.put({})
        started = time.perf_counter()
        self.images[vocabulary].original()
        print(f"{vocabulary}: the original is there after {time.perf_counter() - started:.0f} s", flush=True)

    def targets(self, one: Set) -> Targets:
        """What a set erases, with the anchors that ``fit`` would choose."""
        data = one.given()["data"]
        anchors = read_names(data.get("anchors"), "data.anchors")
        concepts = [{"target": c.target, "anchor": c.anchor, "kind": c.kind} for c in one.concepts()]
        open_ones = Targets(one.name, one.vocabulary, concepts, anchors)
        keep = self.vocabularies[one.vocabulary].keep
        return self.edits.anchored(open_ones, keep, self.clip, data.get("image_guidance", 7.5))

    def row(self, one: Set) -> Row:
        """What both judges see of a set."""
        method, place = one.method(), self.cells.folder / "cells" / slug(one.table) / slug(one.name)
        inputs = {"class": method.class_path, "settings": dict(method.published), "config": one.given()["data"]}
        inputs |= {
            "alone": one.alone,
            "hardened": one.hardened,
            "targets": list(one.targets),
            "keep": list(self.vocabularies[one.vocabulary].keep),
        }
        record = self.cells.kept(place / "row.json", inputs, partial(self.made, method, one, f"{one.table} {one.name}"))
        whole = method.class_path.endswith(".Mace")
        return {
            "set": one.name,
            "method": "all stages" if whole else "refinement alone",
            "curve": one.curve(),
            **record,
        }

    def made(self, method: Method, one: Set, model: str) -> Record:
        """A row, with the share of names of the vocabulary beside it that are seen before and after."""
        if one.alone:
            targets, record = self.ordered(one)
        else:
            targets = self.targets(one)
            record = self.cells.make(method, method.published, targets)
        record |= {"model": model, "kind": one.settings(), "concepts": list(targets.concepts)}
        if "refused" in record:
            return record
        images = self.images[one.vocabulary]
        tables = images.edited(targets, model)
        beside = self.vocabularies[one.vocabulary].beside
        if beside is not None:
            record["beside"] = self.beside(self.images[beside])
        self.edits.put({})
        return record | {"results": images.results(targets, images.original(), tables)}

    def ordered(self, one: Set) -> tuple[Targets, Record]:
        """The edit of a set that is alone, put into the pipeline."""
        started = processor_seconds()
        run = one.ordered(self.told["pretrained"], self.cells.folder / "runs" / slug(one.table) / slug(one.name))
        self.edits.put(Run.load(run).edit.weights(self.edits.original))
        concepts = read_yaml(run / "config.yaml", "config")["data"]["concepts"]
        return Targets(one.name, one.vocabulary, concepts), {"settings": {}, "seconds": processor_seconds() - started}

    def beside(self, images: Images) -> dict[str, list[float]]:
        """By judge, how many images of the vocabulary's names are right before and after."""
        before, after = images.original(), images.named(images.words.names, images.vocabulary.seeds, REPORT)
        return {label: [images.right(tables, i) for tables in (before, after)] for i, label in enumerate(images.labels)}


@cache
def tables_of(given: Given) -> Tables:
    """The tables, as a process makes them."""
    return Tables(given)


def one_original(given: Given, vocabulary: str) -> None:
    """The images of the original, on one core."""
    torch.set_num_threads(1)  # two processes do more than two threads
    tables_of(given).original(vocabulary)


def one_row(given: Given, one: Set) -> Row:
    """What both judges see of a set, on one core."""
    torch.set_num_threads(1)
    row = tables_of(given).row(one)
    print(f"{one.table}, {one.name}: {row['took']:.0f} s", flush=True)
    return row


def side_by_side(given: Given, sets: Sequence[Set]) -> list[Row]:
    """The rows of all sets, by several processes: each takes the next vocabulary, and then the next set.

    Raises:
        SystemExit: a process was killed.
    """
    vocabularies = read_tables(given.file)[0]
    used = [one.vocabulary for one in sets]
    used += [beside for name in used if (beside := vocabularies[name].beside) is not None]
    context = multiprocessing.get_context("forkserver")  # one process imports the libraries, and is forked
    context.set_forkserver_preload(LIBRARIES)
    try:
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            list(pool.map(partial(one_original, given), dict.fromkeys(used)))
            return list(pool.map(partial(one_row, given), sets))
    except BrokenProcessPool as error:
        raise SystemExit("A process was killed. Run the command again: what is done is kept.") from error


def main(
    tables: list[str] | None = None,
    pretrained: str = "checkpoints/emoji",
    judge: str = "checkpoints/emoji/judge/judge.safetensors",
    steps: int = 8,
    guidance: float = 5.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    output: Path = Path("checkpoints/scores/tables"),
    file: Path = FILE,
    page: Path | None = None,
) -> None:
    """Make tables.

    Args:
        tables: names of tables, all when None.
        pretrained: folder of the pipeline.
        judge: weights of the convolutional judge.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        dtype: of the images' pipeline; bfloat16 halves the time on a CPU that multiplies it (AMX).
        output: folder of what is done.
        file: vocabularies, and the sets of each table.
        page: a file with marks of the tables, into which they are put.
    """
    started = time.perf_counter()
    wanted: dict[str, list[Set]] = chosen(read_tables(file)[1], tables, "tables")
    sets = [one for own in wanted.values() for one in own]
    given = Given(pretrained, judge, steps, guidance, dtype, output, file)
    made = tables_of(given)
    every = iter(side_by_side(given, sets))
    rows = {name: [next(every) for _ in own] for name, own in wanted.items()}
    told = made.told | {"chosen by": f"{CLIP}, on other seeds", "minutes": round((time.perf_counter() - started) / 60)}
    write_page(
        output,
        [row for own in rows.values() for row in own],
        {one.name: targets_of(one, rows) for one in sets},
        made.images,
        told,
        "tables",
    )
    texts = {name: table(own) for name, own in rows.items()}
    with written_aside(output / "tables.md") as aside:
        aside.write_text("\n\n".join(f"## {name}\n\n{text}" for name, text in texts.items()) + "\n", encoding="utf-8")
    if "trade-off" in rows:
        plot([*rows.get("ablation", []), *rows["trade-off"]], output / "tradeoff.png")
    if page is not None:
        insert(page, texts)


def targets_of(one: Set, rows: Mapping[str, list[Row]]) -> Targets:
    """What a set erased, from its row."""
    row = next(row for row in rows[one.table] if row["set"] == one.name)
    return Targets(one.name, one.vocabulary, row["concepts"])


if __name__ == "__main__":
    run(main)
