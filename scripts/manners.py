"""Show the painters' manners on the sprites: one row per manner, the first without one, at the model's resolution.

Run it as ``python scripts/manners.py``. Takes a few seconds.
"""

from __future__ import annotations

import random
from pathlib import Path

from diffusers.utils import make_image_grid
from PIL import Image
from runs import run

from mace_pl.files.artifacts import claim_output
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_rgba
from mace_pl.pretraining.captions import read_rows
from mace_pl.pretraining.sprites import BACKGROUNDS, place
from mace_pl.pretraining.styles import MANNERS, paint

SHOWN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "wizard", "clock")


def main(
    folder: str = "mace_pl/pretraining/emoji",
    output: str = "manners.png",
    resolution: int = 64,
    zoom: int = 2,
    overwrite: bool = False,
) -> None:
    """One row per manner, one column per sprite, every second one on a colour.

    Args:
        folder: the sprites and their ``metadata.jsonl``.
        output: the image to write.
        resolution: side of the images.
        zoom: how many pixels of the sheet show one of theirs.
        overwrite: replace ``output``.
    """
    claim_output(Path(output), overwrite, "output")
    rows = {row["concept"]: row for row in read_rows(resolve(folder) / "metadata.jsonl")}
    columns = []
    for column, name in enumerate(SHOWN):
        colour = "white" if column % 2 == 0 else list(BACKGROUNDS)[1 + column // 2 % (len(BACKGROUNDS) - 1)]
        sprite = read_rgba(resolve(folder) / rows[name]["file_name"], "folder")
        image, shape = place(sprite, colour, resolution, random.Random(column))
        columns.append([image, *(paint(image, shape, BACKGROUNDS[colour], manner) for manner in MANNERS)])
    painted = [one for row in zip(*columns, strict=True) for one in row]
    sheet = make_image_grid(painted, rows=1 + len(MANNERS), cols=len(SHOWN))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(output)
    print(f"Written to {output}: {', '.join(['no manner', *MANNERS])}")


if __name__ == "__main__":
    run(main)
