"""Every table of the bundled model: single targets, several, characters, styles, forty concepts and the ablation.

Run it as ``python configs/emoji/tables.py``; ``--tables "[ten, characters, styles, forty]"`` makes some of them only.
Runs that exist are kept; delete a folder to make it again. Takes less than 40 minutes on two CPU cores, which work side
by side. Scores and pages are written to checkpoints/scores; ``--readme README.md`` puts the tables into that file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import forty
from jsonargparse import auto_cli
from runs import PROCESSES, SCORES, concepts_of, fit, score, some
from written import crowds, insert, objects, styles

from mace_pl.artifacts import write_json

Table = Literal["ten", "characters", "styles", "forty"]
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
    return {run: found for run, found in scores.items() if run != "original"}


def ten(pool: Executor) -> dict[str, str]:
    """Each of the ten names as the only target, and the five animals."""
    ship = "configs/emoji/erase_ship.yaml"
    runs = []
    for name in TEN:
        own = concepts_of(ship)[0] | {"target": name}
        own["anchor"] = ANCHORS.get(name, own["anchor"])
        runs.append(pool.submit(fit, ship, f"only_{name}", [own]))
    runs.append(pool.submit(fit, "configs/emoji/erase_animals.yaml", "erase_animals"))
    score("configs/evaluate/emoji_ten.yaml", "ten", [run.result() for run in runs], *STEPS, *SEEDS)
    return {"ten": objects(scored("ten"), [f"only_{name}" for name in TEN])}


def characters(pool: Executor) -> dict[str, str]:
    """One to ten characters."""
    config = "configs/emoji/erase_characters.yaml"
    one = concepts_of(config)[0]
    runs = [
        pool.submit(some, config, f"characters_{count}", [one | {"target": name} for name in CHARACTERS[:count]])
        for count in CROWDS
    ]
    score("configs/evaluate/emoji_characters.yaml", "characters", [run.result() for run in runs], *STEPS, *SEEDS)
    labels = {f"characters_{count}": str(count) for count in CROWDS}
    return {"characters": crowds(scored("characters"), labels, "characters")}


def drawing_styles(pool: Executor) -> dict[str, str]:
    """A style."""
    run = pool.submit(fit, "configs/emoji/erase_style.yaml", "erase_style").result()
    score("configs/evaluate/emoji_styles.yaml", "styles", [run], *STEPS)
    return {"styles": styles(scored("styles")["erase_style"])}


def many(pool: Executor) -> dict[str, str]:
    """Forty concepts: whole, fewer of them, stage by stage, and over the weight of what is preserved."""
    runs = forty.variants(pool)
    score(forty.JUDGE, "variants", runs, *STEPS, *FEW)
    found = scored("variants")
    forty.plot(found, SCORES / "tradeoff.png")
    tops = {label: found[run]["after"]["top1"] for run, label in forty.STAGES.items()}
    rows = [{"label": label} | {key: top[key] for key in ("acc_e", "acc_s", "h")} for label, top in tops.items()]
    write_json(SCORES / "ablation.json", rows)
    stages = ("--model.ablation", json.dumps([str(SCORES / "ablation.json")]))
    score(forty.JUDGE, "forty", runs[:1], *stages, *STEPS, *SEEDS)
    curve = {run: f"{method}, {weight}" for run, (method, weight) in forty.CURVE.items()}
    return {
        "forty": crowds(scored("forty"), {"erase_40": "40, all stages"}, "concepts"),
        "ablation": crowds(found, forty.STAGES, "stages"),
        "counts": crowds(found, forty.NUMBERS, "concepts"),
        "tradeoff": crowds(found, curve, "method, weight of the domain"),
    }


def main(tables: list[Table] | None = None, readme: Path | None = None) -> None:
    """Make tables, all of them when none is named.

    Args:
        tables: which.
        readme: a file with their marks, into which they are put.
    """
    makers = {"ten": ten, "characters": characters, "styles": drawing_styles, "forty": many}
    made: dict[str, str] = {}
    with ThreadPoolExecutor(PROCESSES) as pool:
        for name in tables or makers:
            started = time.monotonic()
            made |= makers[name](pool)
            print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes")
    for name, table in made.items():
        print(f"\n{name}\n\n{table}")
    if readme is not None:
        insert(readme, made)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
