"""What the LoRAs of older entries cost: requests added to a library one by one, against all of them erased at once.

Run it as ``python scripts/one_by_one.py``. The first requests of a configuration of ``fit`` come one after another by
``add``, once for each value of ``--retrain_above``; then the same concepts are erased by one ``fit``. All are scored
in one table over all names of the bundled model, by both judges. What is done is taken again; about half an hour of one
CPU core.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runs import RUNS, SCORES, command, concepts_of, fit, run, score
from written import markdown

from mace_pl.library.change import Library

FORTY = "configs/emoji/erase_40.yaml"
SCORED_BY = "configs/evaluate/emoji_forty.yaml"


def one_by_one(config: str, name: str, concepts: list[dict[str, str]], above: float | None) -> Path:
    """A library that the concepts were added to one after another, unless it is there."""
    if not (RUNS / name).exists():
        aside = fit(config, f"{name}.growing", concepts[:1], "--save_pipeline", "false")
        done = Library.open(str(aside), "run").run.targets
        for concept in concepts:
            if concept["target"] not in done:
                shown = ("--kept", "[]", "--report_seeds", "0", "--retrain_above", json.dumps(above))
                command("add", "--run", str(aside), "--concepts", json.dumps([concept]), *shown)
        shutil.move(aside, RUNS / name)
    return RUNS / name


def trained_again(library: Path) -> int:
    """How many LoRAs the library has trained again."""
    events = Library.open(str(library), "run").history.events
    return sum(len(event.targets) for event in events if event.action == "retrain")


def main(
    config: str = FORTY,
    requests: int = 12,
    above: tuple[float | None, ...] = (None, 0.2, 0.05),
    seeds: int = 5,
    first_seed: int = 700,
    steps: int = 8,
    scored_by: str = SCORED_BY,
) -> None:
    """Add the requests one by one, erase them at once, and score both.

    Args:
        config: a configuration of ``fit``, whose first concepts are the requests in their order.
        requests: how many.
        above: values of ``--retrain_above``, a library for each.
        seeds: images of each name, of seeds that chose no setting.
        first_seed: the first of them.
        steps: denoising steps.
        scored_by: a configuration of ``test``.
    """
    concepts = concepts_of(config)[:requests]
    runs = {f"one by one, trained again above {a}": one_by_one(config, f"one_by_one_{a}", concepts, a) for a in above}
    again = {name: str(trained_again(run)) for name, run in runs.items()}
    runs["all at once"] = fit(config, "one_by_one_at_once", concepts, "--save_pipeline", "false")
    look = ("--data.seeds", str(seeds), "--data.first_seed", str(first_seed), "--model.steps", str(steps))
    score(scored_by, "one_by_one", list(runs.values()), *look)
    print(markdown(["requests", "LoRAs trained again"], [[name, again.get(name, "0")] for name in runs]))
    print(f"Scores in {SCORES / 'one_by_one.json'}, runs in {RUNS}")


if __name__ == "__main__":
    run(main)
