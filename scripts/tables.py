"""Every table of the bundled model: single targets, several, characters, styles, forty concepts and the ablation.

Run it as ``python scripts/tables.py``; ``--tables "[ten, characters, styles, forty]"`` makes some of them only.
Runs that exist are kept; delete a folder to make it again. Takes less than 40 minutes on two CPU cores, which work side
by side. Scores and pages are written to checkpoints/scores; ``--page docs/results.md`` puts the tables into that file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import forty
from jsonargparse import auto_cli
from runs import PROCESSES, RUNS, SCORES, concepts_of, fit, score, some
from written import crowds, insert, objects, styles

from mace_pl.files.artifacts import write_json

Table = Literal["ten", "characters", "styles", "forty"]
Finish = Callable[[], dict[str, str]]  # scores runs that are being made, and returns tables by name
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# others have the config's; a house is a box as a truck is, and synonyms of dog and horse outlived it
ANCHORS = {"airplane": "umbrella", "bird": "book", "dog": "clock", "horse": "clock", "truck": "clock"}
CHARACTERS = ("wizard", "vampire", "zombie", "santa", "mermaid", "elf", "guard", "astronaut", "cook", "pilot")
CROWDS = (1, 3, 5, 10)
STEPS = ("--model.steps", "8")  # the original is seen as rightly as with 12
SEEDS = ("--data.seeds", "20")
FEW = ("--data.seeds", "4")  # of the many variants of forty concepts


def scored(name: str) -> Mapping[str, Any]:
    """What a score file says of each run."""
    scores = json.loads((SCORES / f"{name}.json").read_text(encoding="utf-8"))["scores"]
    return {run: result for run, result in scores.items() if run != "original"}


def ten(pool: Executor, _: Future[Path]) -> Finish:
    """Each of the ten names as the only target, and the five animals."""
    ship = "configs/emoji/erase_ship.yaml"
    runs = []
    for name in TEN:
        concept = concepts_of(ship)[0] | {"target": name}
        concept["anchor"] = ANCHORS.get(name, concept["anchor"])
        runs.append(pool.submit(fit, ship, f"only_{name}", [concept]))
    runs.append(pool.submit(fit, "configs/emoji/erase_animals.yaml", "erase_animals"))

    def finish() -> dict[str, str]:
        score("configs/evaluate/emoji_ten.yaml", "ten", [run.result() for run in runs], *STEPS, *SEEDS)
        return {"ten": objects(scored("ten"), [f"only_{name}" for name in TEN])}

    return finish


def drawing_styles(pool: Executor, _: Future[Path]) -> Finish:
    """A style."""
    run = pool.submit(fit, "configs/emoji/erase_style.yaml", "erase_style")

    def finish() -> dict[str, str]:
        score("configs/evaluate/emoji_styles.yaml", "styles", [run.result()], *STEPS)
        return {"styles": styles(scored("styles")["erase_style"])}

    return finish


def characters(pool: Executor, whole: Future[Path]) -> Finish:
    """One to ten characters."""
    config = "configs/emoji/erase_characters.yaml"
    one = concepts_of(config)[0]
    crowd = {
        f"characters_{count}": [one | {"target": name} for name in CHARACTERS[:count]]
        for count in sorted(CROWDS, reverse=True)  # the largest first, whose images the others take
    }
    runs = {name: pool.submit(after, whole, some, config, name, concepts) for name, concepts in crowd.items()}

    def finish() -> dict[str, str]:
        folders = [runs[f"characters_{count}"].result() for count in CROWDS]
        score("configs/evaluate/emoji_characters.yaml", "characters", folders, *STEPS, *SEEDS)
        labels = {f"characters_{count}": str(count) for count in CROWDS}
        return {"characters": crowds(scored("characters"), labels, "characters")}

    return finish


def many(pool: Executor, whole: Future[Path]) -> Finish:
    """Forty concepts: whole, fewer of them, stage by stage, and over the weight of what is preserved."""
    plain = pool.submit(after, whole, fit, forty.CONFIG, "forty_uniform", None, *forty.UNIFORM)
    counts = [pool.submit(after, whole, forty.counted, count) for count in forty.COUNTS]

    def finish() -> dict[str, str]:
        runs = [whole.result(), *forty.variants(whole.result(), plain.result()), *(run.result() for run in counts)]
        score(forty.JUDGE, "variants", runs, *STEPS, *FEW)
        scores = scored("variants")
        forty.plot(scores, SCORES / "tradeoff.png")
        tops = {label: scores[run]["after"]["top1"] for run, label in forty.STAGES.items()}
        rows = [{"label": label} | {key: top[key] for key in ("acc_e", "acc_s", "h")} for label, top in tops.items()]
        write_json(SCORES / "ablation.json", rows)
        stages = ("--model.ablation", json.dumps([str(SCORES / "ablation.json")]))
        refined = [run for run, (method, _) in forty.CURVE.items() if method == forty.ALONE]
        best = max(refined, key=lambda run: scores[run]["after"]["top1"]["h_c"])
        score(forty.JUDGE, "forty", [runs[0], RUNS / best], *stages, *STEPS, *SEEDS)
        labels = {"erase_40": "40, all stages", best: f"40, {forty.ALONE}, weight {forty.CURVE[best][1]}"}
        curve = {run: f"{method}, {weight}" for run, (method, weight) in forty.CURVE.items()}
        return {
            "forty": crowds(scored("forty"), labels, "concepts"),
            "ablation": crowds(scores, forty.STAGES, "stages"),
            "counts": crowds(scores, forty.NUMBERS, "concepts"),
            "tradeoff": crowds(scores, curve, "method, weight of the domain"),
        }

    return finish


def after(first: Future[Path], function: Callable[..., Path], *arguments: Any) -> Path:
    """Call a function when another run is there, whose images it takes."""
    first.result()
    return function(*arguments)


def main(tables: list[Table] | None = None, page: Path | None = None) -> None:
    """Make tables, all of them when none is named.

    Args:
        tables: which.
        page: a file with their marks, into which they are put.
    """
    makers = {"ten": ten, "styles": drawing_styles, "characters": characters, "forty": many}
    names = [name for name in makers if tables is None or name in tables]
    made: dict[str, str] = {}
    started = time.monotonic()
    with ThreadPoolExecutor(PROCESSES) as pool:
        whole: Future[Path] = Future()
        if {"forty", "characters"} & set(names):
            whole = pool.submit(fit, forty.CONFIG, "erase_40")
        finishes = {name: makers[name](pool, whole) for name in names}
        for name, finish in finishes.items():
            made |= finish()
            print(f"{name}: written after {(time.monotonic() - started) / 60:.1f} minutes")
    for name, table in made.items():
        print(f"\n{name}\n\n{table}")
    if page is not None:
        insert(page, made)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
