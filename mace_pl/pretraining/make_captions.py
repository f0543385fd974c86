"""Make the prior captions of the bundled model: sentences as it was trained on, in COCO's layout.

Run it as ``python -m mace_pl.pretraining.make_captions``; the same seed gives the same file.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from mace_pl.files.artifacts import write_json
from mace_pl.files.paths import resolve
from mace_pl.pretraining.captions import read_rows
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.pretraining.styles import MANNERS


def make_captions(data: SpriteImages) -> list[str]:
    """As many captions as ``data`` has images, of its kinds and in its shares; every concept equally often, up to one.

    Raises:
        UserError: no metadata.jsonl, or no grammar where captions need it.
    """
    folder, rng = resolve(data.folder), random.Random(data.seed)
    by_concept: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / "metadata.jsonl"):
        by_concept.setdefault(row["concept"], []).append(row)
    concepts, write, found = sorted(by_concept), data.captions(folder), []
    for i in range(data.images):
        row = rng.choice(by_concept[concepts[i % len(concepts)]])
        manner = rng.choice(list(MANNERS)) if data.manners and rng.random() < data.manners else None
        found.append(write(row, manner, rng))
    return found


def main(
    output: Path = Path("mace_pl/pretraining/emoji/captions.json"),
    captions: int = 3000,
    manners: float = 0.4,
    sentences: float = 0.45,
    descriptions: float = 0.3,
    folder: str = "mace_pl/pretraining/emoji",
    seed: int = 2024,
) -> None:
    """Write captions of the sprites as COCO annotations, in the shares of configs/train/emoji_unet.yaml.

    Args:
        output: the JSON file to write.
        captions: how many.
        manners: share of those that name a painter's manner.
        sentences: share of the captions with a name that are everyday sentences.
        descriptions: share of the captions of a concept with descriptions that describe it without its name.
        folder: folder with ``metadata.jsonl``, ``sentences.json`` and ``descriptions.json``.
        seed: of all choices.
    """
    made = make_captions(SpriteImages(folder, captions, 64, manners, sentences, descriptions, seed=seed))
    by = f"{captions} captions of emoji sprites, made by mace_pl.pretraining.make_captions, seed {seed}"
    annotations = [{"image_id": i, "id": i, "caption": caption} for i, caption in enumerate(made)]
    write_json(output, {"info": {"description": by}, "annotations": annotations})


if __name__ == "__main__":
    auto_cli(main)
