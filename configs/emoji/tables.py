"""Erase from the bundled model one by one, several at once, a style, characters; then score everything.

Run it as ``python configs/emoji/tables.py``. Runs that exist are kept; delete a folder to make it again. Takes
about 35 minutes on two CPU cores, which work side by side; the tables are written to checkpoints/scores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# others have the config's; a house is a box as a truck is, and synonyms of dog and horse outlived it
ANCHORS = {"airplane": "umbrella", "bird": "clock", "dog": "clock", "horse": "clock", "truck": "clock"}
CHARACTERS = ("wizard", "vampire", "zombie", "santa", "mermaid", "elf", "guard", "astronaut", "cook", "pilot")
ERASE = Path(__file__).resolve().parents[2] / "erase.py"
RUNS = Path("checkpoints/erased")
PROCESSES = 2


def command(*words: str) -> None:
    """One command of ``erase.py`` in a process of its own, on one core per process."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # two processes do more than two threads
    subprocess.run([sys.executable, str(ERASE), *words], check=True, env=os.environ | threads)


def fit(config: str, output: Path, *more: str) -> Path:
    """Erase, unless it was done; the report is left out, the scores below say more."""
    if not output.exists():
        quiet = ["--trainer.enable_progress_bar", "false"]
        command("fit", "--config", config, "--output_dir", str(output), "--kept", "[]", *quiet, *more)
    return output


def score(config: str, name: str, runs: list[Path]) -> None:
    """Score runs in one table, each process a share of the pictures."""
    files = ["--model.output", f"checkpoints/scores/{name}.json", "--model.overwrite", "true"]
    both = ["--trainer.accelerator", "cpu", "--trainer.devices", str(PROCESSES), "--trainer.strategy", "ddp"]
    command("test", "--config", config, "--model.runs", json.dumps([str(run) for run in runs]), *files, *both)


def characters(config: str, count: int) -> Path:
    """Erase the first characters, towards the anchor of the configuration."""
    concept = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["data"]["concepts"][0]
    concepts = json.dumps([concept | {"target": name} for name in CHARACTERS[:count]])
    return fit(config, RUNS / f"characters_{count}", "--data.concepts", concepts)


def main() -> None:
    """All runs and tables."""
    ship = "configs/emoji/erase_ship.yaml"
    concept = yaml.safe_load(Path(ship).read_text(encoding="utf-8"))["data"]["concepts"][0]
    people = "configs/emoji/erase_characters.yaml"
    with ThreadPoolExecutor(PROCESSES) as pool:
        single = []
        for name in TEN:
            own = concept | {"target": name, "anchor": ANCHORS.get(name, concept["anchor"])}
            single.append(pool.submit(fit, ship, RUNS / f"only_{name}", "--data.concepts", json.dumps([own])))
        several = {
            name: pool.submit(fit, f"configs/emoji/erase_{name}.yaml", RUNS / f"erase_{name}")
            for name in ("animals", "style")
        }
        crowd = [pool.submit(characters, people, count) for count in (1, 3, 5, 10)]
    score("configs/evaluate/emoji_ten.yaml", "single", [run.result() for run in single])
    score("configs/evaluate/emoji_ten.yaml", "animals", [several["animals"].result()])
    score("configs/evaluate/emoji_characters.yaml", "characters", [run.result() for run in crowd])
    score("configs/evaluate/emoji_styles.yaml", "style", [several["style"].result()])


if __name__ == "__main__":
    main()
