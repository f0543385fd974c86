"""Plain captions of a sprite: a template, its style, a background."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError

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
