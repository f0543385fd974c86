"""Erase from the bundled model one by one, several at once, a style, characters; then score everything.

Run it as ``python configs/emoji/tables.py``. Runs that exist are kept; delete a folder to make it again. Takes
less than 40 minutes on two CPU cores, which work side by side; the tables are written to checkpoints/scores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from runs import PROCESSES, concepts_of, fit, score

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# others have the config's; a house is a box as a truck is, and synonyms of dog and horse outlived it
ANCHORS = {"airplane": "umbrella", "bird": "book", "dog": "clock", "horse": "clock", "truck": "clock"}
CHARACTERS = ("wizard", "vampire", "zombie", "santa", "mermaid", "elf", "guard", "astronaut", "cook", "pilot")
COUNTS = (1, 3, 5, 10)


def main() -> None:
    """All runs and tables."""
    ship, people = "configs/emoji/erase_ship.yaml", "configs/emoji/erase_characters.yaml"
    with ThreadPoolExecutor(PROCESSES) as pool:
        single, crowds = [], []
        for name in TEN:
            own = concepts_of(ship)[0] | {"target": name}
            own["anchor"] = ANCHORS.get(name, own["anchor"])
            single.append(pool.submit(fit, ship, f"only_{name}", [own]))
        several = {
            name: pool.submit(fit, f"configs/emoji/erase_{name}.yaml", f"erase_{name}") for name in ("animals", "style")
        }
        for count in COUNTS:
            crowd = [concepts_of(people)[0] | {"target": name} for name in CHARACTERS[:count]]
            crowds.append(pool.submit(fit, people, f"characters_{count}", crowd))
    score("configs/evaluate/emoji_ten.yaml", "single", [run.result() for run in single])
    score("configs/evaluate/emoji_ten.yaml", "animals", [several["animals"].result()])
    score("configs/evaluate/emoji_characters.yaml", "characters", [run.result() for run in crowds])
    score("configs/evaluate/emoji_styles.yaml", "style", [several["style"].result()])


if __name__ == "__main__":
    main()
