"""Make the prior captions of the bundled model: the sentences that it was trained on, in COCO's layout.

Run it as ``python -m mace_pl.pretraining.make_captions``; the same seed gives the same file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from mace_pl.errors import UserError
from mace_pl.files.artifacts import write_json
from mace_pl.files.paths import resolve

TEMPLATES = ("a photo of a {}", "{}", "a {}", "a drawing of a {}", "a picture of a {}", "an image of a {}")
STYLES = (" in {} style", " in the style of {}", ", {} art")
COLOURS = ("blue", "gray", "green", "pink", "red", "yellow")
STYLED = 0.6  # share of captions that name a style
COLOURED = 0.5  # share of captions that name a background other than white
SYNONYM = 0.35  # share of captions that name a concept with synonyms by one of them
PERSON = 0.1  # share of captions that call a character a person


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the sprites' ``metadata.jsonl``.

    Raises:
        UserError: the file is missing.
    """
    if not path.is_file():
        raise UserError(f"metadata={path} is no file. Give the metadata.jsonl of the sprites.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def make_caption(row: dict[str, Any], rng: random.Random) -> str:
    """One caption of a sprite: template, then perhaps its style, then perhaps a background."""
    name = row["concept"]
    if row.get("synonyms") and rng.random() < SYNONYM:
        name = rng.choice(row["synonyms"])
    elif row["kind"] == "character" and rng.random() < PERSON:
        name = "person"
    caption = rng.choice(TEMPLATES).format(name)
    if rng.random() < STYLED:
        caption += rng.choice(STYLES).format(row["style"])
    if rng.random() < COLOURED:
        caption += f" on a {rng.choice(COLOURS)} background"
    return caption


def make_captions(rows: Sequence[dict[str, Any]], captions: int, seed: int) -> list[str]:
    """Captions of sprites, every concept equally often up to one; ``rows`` are the rows of ``metadata.jsonl``."""
    rng = random.Random(seed)
    by_concept: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_concept.setdefault(row["concept"], []).append(row)
    concepts = sorted(by_concept)
    return [make_caption(rng.choice(by_concept[concepts[i % len(concepts)]]), rng) for i in range(captions)]


def main(
    metadata: str = "mace_pl/pretraining/emoji/metadata.jsonl",
    output: str = "mace_pl/pretraining/emoji/captions.json",
    captions: int = 3000,
    seed: int = 2024,
) -> None:
    """Write captions of the sprites as COCO annotations.

    Args:
        metadata: the sprites' ``metadata.jsonl``.
        output: the JSON file to write.
        captions: how many.
        seed: of the choice of sprites, templates, styles and backgrounds.
    """
    made = make_captions(read_rows(resolve(metadata)), captions, seed)
    info = {
        "description": f"{captions} captions of emoji sprites, made by mace_pl.pretraining.make_captions, seed {seed}"
    }
    annotations = [{"image_id": i, "id": i, "caption": caption} for i, caption in enumerate(made)]
    write_json(Path(output), {"info": info, "annotations": annotations})


if __name__ == "__main__":
    auto_cli(main)
