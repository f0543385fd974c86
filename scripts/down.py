"""Stage 2 with a trained down-projection and with a fixed one: losses, and what the fused edits score.

Run it as ``python scripts/down.py``; ``--tasks "[one, ten]"`` does some of one, ten and forty concepts of the bundled
model. Both ways train with three learning rates; an edit is fused after 10, 30 and all steps. The learning rate of each
is chosen by images of other seeds than those that are reported. What is done is kept in ``output`` and taken again;
about 30 minutes of one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch import seed_everything
from runs import SCORES, concepts_of, run
from safetensors.torch import load_file, save_file
from torch import Tensor
from written import markdown

from mace_pl.data.concepts import ConceptData
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.erasure_scores import Groups, accuracies
from mace_pl.evaluation.words import neighbours
from mace_pl.files.artifacts import write_json
from mace_pl.files.tables import read_yaml
from mace_pl.methods.edit import Factors
from mace_pl.methods.mace import Mace
from mace_pl.models.sampling import generate
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.stages.fuse import Trained, fuse_concepts
from mace_pl.training.trainer import MaceTrainer

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHARACTERS = ("wizard", "vampire", "zombie", "santa", "mermaid", "elf", "guard", "astronaut", "cook", "pilot")
WAYS = ("trained", "gram")
#: learning rates as parts of the configuration's; a trained A grows with its B, a fixed one wants the growth from B
RATES = {"trained": (1, 1 / 3, 3), "gram": (1, 30, 100)}
EARLY = (10, 30)  # steps
IMAGE_STEPS = 8
FIRST = 100  # of the seeds by which learning rates are chosen
LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6)  # parts of the attention loss of the refined model


@dataclass(frozen=True)
class Task:
    """A configuration, its targets, the names that are generated, and what of ``data`` is smaller here."""

    config: str
    targets: Sequence[str]
    names: Sequence[str]
    smaller: dict[str, Any]


def tasks() -> dict[str, Task]:
    """One, ten and forty concepts."""
    every = Path("configs/emoji/names.txt").read_text(encoding="utf-8").split("\n")
    forty = "configs/emoji/erase_40.yaml"
    twenty = yaml.safe_load(Path("configs/evaluate/emoji_characters.yaml").read_text(encoding="utf-8"))["data"]["names"]
    return {
        "one": Task("configs/emoji/erase_ship.yaml", ["ship"], TEN, {}),
        "ten": Task(
            "configs/emoji/erase_characters.yaml", CHARACTERS, twenty, {"image_steps": 12, "images_per_concept": 4}
        ),
        "forty": Task(
            forty,
            [c["target"] for c in concepts_of(forty)],
            [name for name in every if name.strip()],
            {"image_steps": 8, "images_per_concept": 4, "steps_per_concept": 30},
        ),
    }


class Snapshots(Callback):
    """Copies of every LoRA after some of its steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.factors: dict[int, dict[str, Factors]] = {step: {} for step in steps}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step of some concepts."""
        module: Any = pl_module
        for concept in batch["concepts"] if batch["step"] + 1 in self.factors else ():
            own = {name: (A.clone(), B.clone()) for name, (A, B) in module.loras.factors(concept).items()}
            self.factors[batch["step"] + 1][module.data.concepts[concept].target] = own


def train(task: Task, way: str, rate: float) -> tuple[ConceptErasure, Snapshots]:
    """All stages of a task; a rate of 0 leaves every LoRA at zero: the losses of the refined model alone."""
    content = read_yaml(Path(task.config), "config")
    known = {c["target"]: c for c in content["data"].pop("concepts")}
    one = next(iter(known.values()))
    settings, data = dict(content["model"]), content["data"] | task.smaller
    settings |= {"method": Mace(down=way), "lr": settings["lr"] * rate}
    seed_everything(2024, verbose=False)
    module = ConceptErasure(**settings)
    concepts = ConceptData([known.get(t, one | {"target": t}) for t in task.targets], **data)
    snapshots = Snapshots(sorted({*EARLY, concepts.steps_per_concept}))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "callbacks": [snapshots]}
    MaceTrainer(**quiet).fit(module, datamodule=concepts)
    return module, snapshots


def scored(
    module: ConceptErasure, weights: Mapping[str, Tensor], task: Task, first: int, seeds: int
) -> dict[str, float]:
    """Top-1 accuracies of the images that these weights generate, by CLIP."""
    module.backbone.set_key_values(weights)
    names = list(task.names)
    preserved = [name for name in names if name not in task.targets]
    judge = ClipClassifier("checkpoints/emoji/clip", names)
    embedded = [judge.encoder.text([f"a photo of a {n}" for n in own]) for own in (task.targets, preserved)]
    near = neighbours(task.targets, preserved, *embedded, judge.encoder.tokenizer, 3)
    asked = [(name, seed) for name in names for seed in range(first, first + seeds)]
    prompts = [f"a photo of a {name}" for name, _ in asked]
    images = generate(module.pipeline, prompts, [seed for _, seed in asked], IMAGE_STEPS)
    seen = torch.cat([judge(images[i : i + 64]) for i in range(0, len(images), 64)]).argmax(-1)
    right = (seen.view(len(names), seeds) == torch.arange(len(names))[:, None]).double().mean(1)
    close = dict.fromkeys(n for groups in near.values() for own in groups.values() for n in own)
    index = names.index
    groups = Groups([index(n) for n in task.targets], [index(n) for n in preserved], [], [index(n) for n in close])
    return {name: float(value) for name, value in accuracies(right[None], groups).items()}


def trained(name: str, task: Task, rate: float, way: str, folder: Path, done: dict[str, Any]) -> None:
    """Train one way of a task unless it is there; its edits go into ``folder``, its losses into ``done``."""
    key = f"{name} {way} {rate:.2g}"
    if key in done["losses"]:
        return
    module, snapshots = train(task, way, rate)
    done["losses"][key] = module.trained.losses
    original = {n: W.cpu() for n, W in module.refined.original.items()}
    for steps, factors in snapshots.factors.items() if rate else ():
        weights = fuse_concepts(module.refined, Trained(factors, {})).weights(original)
        save_file(weights, folder / f"{key} {steps}.safetensors")
        done["rows"].append({"task": name, "way": way, "rate": rate, "steps": steps})
    write_json(folder / "down.json", done)


class Scorer:
    """Scores edits that were saved, once for each set of seeds."""

    def __init__(self, folder: Path, done: dict[str, Any]) -> None:
        self.folder, self.done = folder, done
        self.module = ConceptErasure("checkpoints/emoji")

    def __call__(self, task: Task, row: dict[str, Any], first: int, seeds: int) -> dict[str, float]:
        """Of a cell."""
        when = f"{first} to {first + seeds - 1}"
        if when not in row:
            file = f"{row['task']} {row['way']} {row['rate']:.2g} {row['steps']}.safetensors"
            row[when] = scored(self.module, load_file(self.folder / file), task, first, seeds)
            write_json(self.folder / "down.json", self.done)
            print(row, flush=True)
        found: dict[str, float] = row[when]
        return found


def cells(name: str, task: Task, score: Scorer, choosing: int, reporting: int) -> list[list[str]]:
    """A line for each way and number of steps, with the configuration's learning rate and with the chosen one."""
    lines = []
    own = [row for row in score.done["rows"] if row["task"] == name]
    for steps in sorted({row["steps"] for row in own}):
        for way in WAYS:
            rows = [row for row in own if (row["way"], row["steps"]) == (way, steps)]
            chosen = {"config's": next(row for row in rows if row["rate"] == 1)}
            if len(rows) > 1:
                best = max(rows, key=lambda row: score(task, row, FIRST, choosing).get("h_c", 0.0))
                chosen[f"best of {len(rows)}"] = best
            for label, row in chosen.items():
                found = score(task, row, 0, reporting)
                scores = [f"{found[k]:.3f}" for k in ("acc_e", "acc_s", "acc_n", "h_c")]
                lines.append([name, str(steps), way, f"{label}, × {row['rate']:.2g}", *scores])
    return lines


def reached(losses: Mapping[str, Any], key: str, plain: str, window: int = 5) -> list[str]:
    """How much attention is left of the refined model's on the same samples, and after how many steps it was so little.

    The mean over concepts and over ``window`` steps.
    """
    after, before = (torch.tensor(list(losses[k].values())) for k in (key, plain))
    left = (after / before).mean(0).unfold(0, window, 1).mean(1)
    first = [torch.nonzero(left <= level).flatten().tolist()[:1] for level in LEVELS]
    return [f"{float(left[-1]):.2f}", *(str(at[0] + window) if at else "" for at in first)]


def main(
    wanted: list[Literal["one", "ten", "forty"]] | None = None,
    rates: int = 3,
    choosing: int = 4,
    reporting: int = 4,
    output: Path = SCORES / "down",
) -> None:
    """Train, choose, report.

    Args:
        wanted: which tasks, all when None.
        rates: how many learning rates are tried; 1 is the configuration's.
        choosing: seeds by whose images a learning rate is chosen.
        reporting: other seeds, whose images are reported.
        output: folder of what is done.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "down.json"
    done = read_yaml(file, "output") if file.is_file() else {"rows": [], "losses": {}}
    lines, curves = [], []
    for name, task in tasks().items():
        if wanted is not None and name not in wanted:
            continue
        for way, rate in [*((way, rate) for way, own in RATES.items() for rate in own[:rates]), (WAYS[0], 0)]:
            trained(name, task, rate, way, output, done)
        lines += cells(name, task, Scorer(output, done), choosing, reporting)
        curves += [
            [key, *reached(done["losses"], key, f"{name} trained 0")]
            for key in done["losses"]
            if key.startswith(f"{name} ") and not key.endswith(" 0")
        ]
    print(markdown(["concepts", "steps", "A", "learning rate", "Acc_e", "Acc_s", "near names", "H_c"], lines))
    print(markdown(["run", "left at the end", *(f"steps to {level}" for level in LEVELS)], curves))


if __name__ == "__main__":
    run(main)
