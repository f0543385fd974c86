"""Every method on the same targets, anchors, keep list and prompts, by both judges: one table and one page.

Run it as ``python scripts/compare_methods.py``; ``--sets "[ship, animals]"`` and ``--methods "[UCE, Mace]"`` make some
cells only. A cell is a method on a set of targets, with its published settings and with the best of as many trials
(random draws, the published settings first) as every other method has. CLIP chooses, on seeds of its own; the
convolutional judge reports on other seeds, and CLIP beside it. What is done is kept in ``output`` and taken again, a
trial or a cell at a time, so that the command may be cut off; two of them may work on different sets side by side, and
one without ``--sets`` writes the whole table at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from compared import Method, Targets, chosen, read_methods, read_sets, with_seeds
from compared_edits import Edits
from compared_images import Images
from compared_page import write_page
from runs import run

from mace_pl.errors import UserError
from mace_pl.files.artifacts import slug, write_json
from mace_pl.files.identity import identity
from mace_pl.files.tables import read_yaml
from mace_pl.models.pipeline import model_fingerprint

Record = dict[str, Any]
SEED = 2024  # of the random draws


class Cells:
    """Makes what is missing of a method on a set.

    Args:
        folder: of everything.
        edits: makes edits.
        images: generates and judges, by vocabulary.
        keep: keep lists by vocabulary.
        trials: settings that each method tries, the published ones among them.
    """

    def __init__(
        self, folder: Path, edits: Edits, images: Mapping[str, Images], keep: Mapping[str, list[str]], trials: int
    ) -> None:
        self.folder, self.edits, self.images, self.keep, self.trials = folder, edits, images, keep, trials

    def kept(self, file: Path, of: Mapping[str, Any], make: Callable[[], Record]) -> Record:
        """A record that was written of the same settings, targets and keep list, or is made and written."""
        if file.is_file():
            found: Record = read_yaml(file, "output")
            if found["of"] == identity(of):
                return found
        started = time.perf_counter()
        record = make()
        record |= {"took": time.perf_counter() - started, "of": identity(of)}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        return record

    def make(self, method: Method, settings: Mapping[str, Any], targets: Targets) -> Record:
        """Make an edit and put it into the pipeline; what it cost, or why it was refused."""
        try:
            weights, cost = self.edits.make(method, settings, targets, self.keep[targets.vocabulary])
        except UserError as error:
            return {"settings": dict(settings), "refused": str(error)}
        self.edits.put(weights)
        return {"settings": dict(settings), **cost}

    def tried(self, method: Method, number: int, targets: Targets) -> Record:
        """A trial: settings with their score on the seeds that choose; a refused one has −1."""
        found = self.make(method, method.trial(number, SEED), targets)
        return found | ({"score": -1.0} if "refused" in found else self.images[targets.vocabulary].score(targets))

    def reported(self, method: Method, settings: Mapping[str, Any], targets: Targets, name: str) -> Record:
        """What both judges see on the seeds that are reported."""
        found = self.make(method, settings, targets)
        if "refused" in found:
            return found
        images = self.images[targets.vocabulary]
        tables = images.edited(targets, name)
        self.edits.put({})
        return found | {"results": images.results(targets, images.original(), tables)}

    def cell(self, method: Method, targets: Targets) -> list[Record]:
        """Published and found settings of a method on a set."""
        place = self.folder / "cells" / slug(targets.name) / slug(method.name)
        inputs = {"class": method.class_path, "concepts": list(targets.concepts), "keep": self.keep[targets.vocabulary]}
        tried, reported = [], {}
        for n in range(self.trials):
            of = {**inputs, "settings": method.trial(n, SEED)}
            tried.append(self.kept(place / f"trial_{n}.json", of, partial(self.tried, method, n, targets)))
        best = max(range(self.trials), key=lambda n: tried[n]["score"])
        for n in dict.fromkeys((0, best)):
            settings, model = tried[n]["settings"], f"{targets.name} {method.name} {n}"
            make = partial(self.reported, method, settings, targets, model)
            row = self.kept(place / f"reported_{n}.json", {**inputs, "settings": settings}, make)
            reported[n] = {"set": targets.name, "method": method.name, "model": model, **row}
        rows = [{**reported[0], "kind": "published"}, {**reported[best], "kind": f"best of {self.trials}"}]
        rows[1]["trials_took"] = sum(one["took"] for one in tried)
        return rows


def main(
    sets: list[str] | None = None,
    methods: list[str] | None = None,
    trials: int = 8,
    seeds: int | None = None,
    level_seeds: int | None = None,
    trial_seeds: int | None = None,
    pretrained: str = "checkpoints/emoji",
    prior: str | None = None,
    judge: str | None = "checkpoints/emoji/judge/judge.safetensors",
    clip: str | None = None,
    steps: int = 8,
    guidance: float = 5.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    output: Path = Path("checkpoints/scores/compare"),
    targets: Path = Path("configs/compare/sets.yaml"),
    candidates: Path = Path("configs/compare/methods.yaml"),
) -> None:
    """Compare.

    Args:
        sets: names of sets of targets, all when None.
        methods: names of methods, all when None.
        trials: settings that each method tries on each set, the published ones among them.
        seeds: reported images of each word and template, the vocabulary's when None.
        level_seeds: reported images of each prompt of a level, likewise; 0 leaves the levels out.
        trial_seeds: images of each name and template by which settings are chosen, likewise.
        pretrained: folder of the pipeline.
        prior: its prior statistics, ``statistics/prior.safetensors`` in ``pretrained`` when None.
        judge: weights of the convolutional judge; null for CLIP alone.
        clip: folder of the CLIP that chooses, ``clip`` in ``pretrained`` when None.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        dtype: of the images' pipeline; bfloat16 halves the time on a CPU that multiplies it (AMX).
        device: where images are generated and judged, as ``cuda``; edits are made on the CPU.
        output: folder of what is done; settings above must stay the same for it.
        targets: file of vocabularies and sets.
        candidates: file of methods.
    """
    if trials < 1:
        raise UserError(f"trials={trials} must be at least 1: the published settings are the first.")
    vocabularies, known = read_sets(targets)
    wanted = chosen(known, sets, "sets")
    tried = chosen(read_methods(candidates), methods, "methods")
    prior = prior or f"{pretrained}/statistics/prior.safetensors"
    edits = Edits(pretrained, prior, output / "pictures", getattr(torch, dtype), device)
    numbers = {"seeds": seeds, "level_seeds": level_seeds, "trial_seeds": trial_seeds}
    used = {one.vocabulary: with_seeds(vocabularies[one.vocabulary], numbers) for one in wanted.values()}
    given = {
        "pretrained": pretrained,
        "judge": judge,
        "clip": clip,
        "steps": steps,
        "guidance": guidance,
        "dtype": dtype,
    }
    model = model_fingerprint(edits.pipeline)
    for name, own in used.items():
        counts = {key: getattr(own, key) for key in numbers}
        asked = identity({key: value for key, value in vars(own).items() if key not in (*numbers, "keep")})
        check_same(output / slug(name) / "settings.json", {**given, **counts, "model": model, "vocabulary": asked})
    images = {
        name: Images(edits.generating, own, judge, clip or f"{pretrained}/clip", output / slug(name), steps, guidance)
        for name, own in used.items()
    }
    looks = clip or f"{pretrained}/clip"
    wanted = {n: edits.anchored(one, used[one.vocabulary].keep, looks, guidance) for n, one in wanted.items()}
    edits.put({})
    for name, own in images.items():
        started = time.perf_counter()
        own.original()
        print(f"{name}: the original is there after {time.perf_counter() - started:.0f} s", flush=True)
    cells = Cells(output, edits, images, {name: list(own.keep) for name, own in used.items()}, trials)
    rows = []
    for one in wanted.values():
        for method in tried.values():
            started = time.perf_counter()
            rows += cells.cell(method, one)
            print(f"{one.name}, {method.name}: {time.perf_counter() - started:.0f} s", flush=True)
    write_page(output, rows, wanted, images, {**given, "trials": trials})


def check_same(file: Path, given: Record) -> None:
    """Keep what the images of a folder are made with.

    Raises:
        UserError: others were made otherwise.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, given)
        return
    before = read_yaml(file, "output")
    other = [f"{key} {before.get(key)}" for key, value in given.items() if before.get(key) != value]
    if other:
        raise UserError(f"output={file.parent} was made with {', '.join(other)}. Give these, or another output.")


if __name__ == "__main__":
    run(main)
