"""Erase from the bundled model one by one, several at once, a style, characters; then score everything.

Run it as ``python configs/emoji/tables.py``. Runs that exist are kept; delete a folder to make it again. Takes about
an hour on two CPU cores; the tables are written to checkpoints/scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from mace_pl.cli import erase_main

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANCHORS = {"truck": "clock"}  # others have the config's; a house is a box as a truck is, and trucks stayed trucks
RUNS = Path("checkpoints/erased")


def fit(config: str, output: Path, *more: str) -> Path:
    """Erase, unless it was done; the report is left out, the scores below say more."""
    if not output.exists():
        erase_main(["fit", "--config", config, "--output_dir", str(output), "--kept", "[]", *more])
    return output


def score(config: str, name: str, runs: list[Path]) -> None:
    """Score runs in one table."""
    files = ["--model.output", f"checkpoints/scores/{name}.json", "--model.overwrite", "true"]
    erase_main(["test", "--config", config, "--model.runs", json.dumps([str(run) for run in runs]), *files])


def main() -> None:
    """All runs and tables."""
    ship = "configs/emoji/erase_ship.yaml"
    concept = yaml.safe_load(Path(ship).read_text(encoding="utf-8"))["data"]["concepts"][0]
    single = []
    for name in TEN:
        own = concept | {"target": name, "anchor": ANCHORS.get(name, concept["anchor"])}
        single.append(fit(ship, RUNS / f"only_{name}", "--data.concepts", json.dumps([own])))
    animals = fit("configs/emoji/erase_animals.yaml", RUNS / "erase_animals")
    characters = fit("configs/emoji/erase_characters.yaml", RUNS / "erase_characters")
    style = fit("configs/emoji/erase_style.yaml", RUNS / "erase_style")
    score("configs/evaluate/emoji_ten.yaml", "single", single)
    score("configs/evaluate/emoji_ten.yaml", "animals", [animals])
    score("configs/evaluate/emoji_characters.yaml", "characters", [characters])
    score("configs/evaluate/emoji_styles.yaml", "style", [style])


if __name__ == "__main__":
    main()
