"""Requests one after another: a library, which solves all of them again, against editing the edited model again.

Run it as ``python scripts/sequence.py``. The forty concepts of the bundled model come one by one, by MACE's refinement
and by UCE; nothing is trained. A library solves T over all requests so far; naive re-editing solves T for the new
request alone on the weights of the last edit, which gives W T₁ T₂ … Tₖ. Scored after some of the requests by the
convolutional judge, over all names; the settings are those of the configurations and were not chosen here. What is
done is kept in ``output`` and taken again; about 40 minutes of one CPU core.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from compared_edits import cast
from PIL import Image
from rich.progress import track
from runs import RUNS, fit, run
from torch import Tensor
from written import markdown

from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.evaluation.fid import ClipFeatures, perceptual_distance
from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.methods.chosen import chosen
from mace_pl.methods.edit import SumsOnDisk
from mace_pl.models.backbone import backbone_of
from mace_pl.models.sampling import generate
from mace_pl.run import Run
from mace_pl.stages.again import wanted_of
from mace_pl.stages.refine import solve

FORTY = "configs/emoji/erase_40.yaml"
#: by name: options of ``fit``, UCE's weights as published
UCE = ("--model.method", "UCE", "--model.prior", "null", "--model.refine", "{identity: 0.5, domain: 1.0}")
METHODS = {"MACE": ("--model.method", "MaceRefinement"), "UCE": UCE}
WAYS = ("library", "again")
SHOWN = {"library": "library, solved over all", "again": "edited again and again"}


class Solver:
    """Solves the edit of some of a run's targets, with the settings of the run.

    Args:
        run: a run of ``fit`` with the sums of every target.
        pipeline: the original model.
    """

    def __init__(self, run: Run, pipeline: Any) -> None:
        self.run, self.pipeline = run, pipeline
        self.method = chosen(run.config["model"]["method"])

    def __call__(self, targets: Sequence[str]) -> Tensor:
        """T [D, D] over these targets."""
        model, sums = self.run.config["model"], SumsOnDisk()
        for target in targets:
            sums.add(target, self.run.concept(target)[0])
        edit, _, _ = solve(self.pipeline, self.method, sums, wanted_of(self.pipeline, model, self.method))
        return edit.R.double()


def matrices(solver: Solver, after: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """T [D, D] by way and number of requests."""
    targets, found = solver.run.targets, {}
    product = torch.eye(len(solver(targets[:1])), dtype=torch.float64)
    for number in track(range(1, max(after) + 1), description="Solving"):
        product = product @ solver(targets[number - 1 : number])
        if number in after:
            found["again", number], found["library", number] = product, solver(targets[:number])
    return found


class Scorer:
    """Generates and scores the edited model.

    Args:
        pipeline: the original model, whose keys and values are changed.
        clip: folder of the CLIPModel whose image side measures the distance.
        judge: what names the images; its names are generated, and what is no target is preserved.
        seeds: images of each name.
        steps: denoising steps.
    """

    def __init__(self, pipeline: Any, clip: str, judge: ConvolutionalJudge, seeds: int, steps: int):
        self.backbone, self.pipeline, self.judge, self.steps = backbone_of(pipeline), pipeline, judge, steps
        self.original = {name: weight.clone() for name, weight in self.backbone.key_values().items()}
        self.names, self.seeds, self.features = judge.names, list(seeds_of(seeds)), ClipFeatures(clip)
        self.before = self.images(torch.eye(next(iter(self.original.values())).shape[1], dtype=torch.float64))

    def images(self, T: Tensor) -> dict[str, list[Image.Image]]:
        """Images of every name by the weights W T."""
        self.backbone.set_key_values({name: (W.double() @ T).to(W) for name, W in self.original.items()})
        prompts = [f"a photo of a {name}" for name in self.names for _ in self.seeds]
        made = generate(self.pipeline, prompts, self.seeds * len(self.names), self.steps)
        return {name: made[i * len(self.seeds) :][: len(self.seeds)] for i, name in enumerate(self.names)}

    def __call__(self, T: Tensor, erased: Sequence[str], all_targets: Sequence[str]) -> dict[str, float]:
        """Acc_e over the requests so far, Acc_s over names that are never asked for, and how far these moved."""
        images = self.images(T)
        preserved = [name for name in self.names if name not in all_targets]
        pairs = [[self.features(made[name])[1] for made in (images, self.before)] for name in preserved]
        distance = torch.stack([perceptual_distance(*pair).mean() for pair in pairs]).mean()
        return {
            "acc_e": self.seen(images, erased),
            "acc_s": self.seen(images, preserved),
            "distance": float(distance),
            "empty": sum(self.empty(images[name]) for name in erased) / len(erased),
        }

    def seen(self, images: Mapping[str, Sequence[Image.Image]], names: Sequence[str]) -> float:
        """The share of the images of some names that are taken for them."""
        index = self.judge.names.index
        shares = [float((self.judge(images[n]).argmax(-1) == index(n)).float().mean()) for n in names]
        return sum(shares) / len(shares)

    def empty(self, images: Sequence[Image.Image]) -> float:
        """The share of images that show nothing."""
        return float((~self.judge(images).any(-1)).float().mean())


def seeds_of(number: int) -> range:
    """Seeds that chose no setting."""
    return range(500, 500 + number)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Acc_e and Acc_s over the number of requests."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    for axis, key, title in zip(
        axes, ("acc_e", "acc_s"), ("erased names still seen", "preserved names seen"), strict=True
    ):
        for method in dict.fromkeys(row["method"] for row in rows):
            for way, line in zip(WAYS, ("-", "--"), strict=True):
                own = [row for row in rows if (row["method"], row["way"]) == (method, way)]
                axis.plot([r["requests"] for r in own], [r[key] for r in own], line, label=f"{method}, {SHOWN[way]}")
        axis.set(title=title, xlabel="requests", ylim=(-0.03, 1.03))
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    with written_aside(path, overwrite=True) as aside:
        figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)


def main(
    judge: str = "checkpoints/emoji/judge/judge.safetensors",
    clip: str = "checkpoints/emoji/clip",
    output: str = "checkpoints/scores/sequence",
    config: str = FORTY,
    after: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 30, 40),
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = 3,
    steps: int = 8,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Score both ways after some of the requests.

    Args:
        judge: weights of the convolutional judge.
        clip: folder of the CLIPModel whose image side measures how far images of preserved names moved.
        output: path of the table (``.md``), the plot (``.png``) and the figures (``.json``), without its ending.
        config: a configuration of ``fit``, whose concepts are the requests in their order.
        after: numbers of requests after which images are scored.
        methods: MACE, UCE.
        seeds: images of each name.
        steps: denoising steps.
        dtype: of the images' pipeline; bfloat16 halves the time on a CPU that multiplies it (AMX).
    """
    name, network, solved = Path(output), ConvolutionalJudge(judge), {}
    for method in methods:
        options = METHODS[method]
        run = Run.load(fit(config, f"sequence_{method}", None, *options, "--save_pipeline", "false"))
        pipeline, _, _ = run.base.load()
        solved[method] = matrices(Solver(run, pipeline), after)
    score = Scorer(cast(pipeline, getattr(torch, dtype)), clip, network, seeds, steps)
    file = name.with_suffix(".json")
    kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    look = {"seeds": seeds, "steps": steps, "dtype": dtype}
    rows = [row for row in kept if {key: row.get(key) for key in look} == look]
    others = [row for row in kept if row not in rows]  # stay in the file
    done = {(row["method"], row["way"], row["requests"]) for row in rows}
    for method, found in solved.items():
        for (way, number), T in track(found.items(), description=f"Scoring {method}"):
            if (method, way, number) not in done:
                scores = score(T, run.targets[:number], run.targets)
                rows.append({"method": method, "way": way, "requests": number, **look, **scores})
                write_json(file, others + rows)
    rows.sort(key=lambda row: (row["method"], WAYS.index(row["way"]), row["requests"]))
    plot(rows, name.with_suffix(".png"))
    head = ["method", "way", "requests", "Acc_e", "Acc_s", "distance of preserved", "empty"]
    figures = ("acc_e", "acc_s", "distance", "empty")
    lines = [[r["method"], SHOWN[r["way"]], str(r["requests"]), *(f"{r[k]:.3f}" for k in figures)] for r in rows]
    name.with_suffix(".md").write_text(markdown(head, lines) + "\n", encoding="utf-8")
    print(markdown(head, lines), f"\nWritten to {name}.md, .png and .json; runs in {RUNS}")


if __name__ == "__main__":
    run(main)
