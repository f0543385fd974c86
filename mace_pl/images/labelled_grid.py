"""Rows of images with words above the columns and beside the rows."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 160  # pixels of an image's longer side
COLUMNS = 5  # images beside each other; more of them go into further bands
MARGIN = 8
FONT_SIZE = 17
#: fonts of systems, for labels that Pillow's own has no letters for (it knows ASCII alone); the last ones know Chinese,
#: Japanese and Korean
FONTS = ("DejaVuSans.ttf", "arial.ttf", "Arial.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "msgothic.ttc")
NO_LETTER = "\U0010ffff"


def labelled_grid(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], note: str = "") -> Image.Image:
    """One image of all: in bands of a few columns, each prompt above its column and each row's name beside it.

    Args:
        rows: images under the name of their row; every row has one for each prompt, all of one size.
        prompts: what the columns show.
        note: stands below all.
    """
    font = font_for("".join([*rows, *prompts, note]))
    first = next(iter(rows.values()))[0]
    scale = CELL / max(first.size)
    width, height = (max(1, round(side * scale)) for side in first.size)
    letter = font.getlength("n")
    names = [textwrap.fill(name, 14) for name in rows]
    heads = [textwrap.fill(prompt, max(1, int(width / letter))) for prompt in prompts]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(_size(pen, name, font)[0] for name in names) + 2 * MARGIN
    top = max(_size(pen, head, font)[1] for head in heads) + 2 * MARGIN
    band = top + len(names) * (height + MARGIN)
    columns = min(COLUMNS, len(prompts))
    bands = -(-len(prompts) // columns)
    wide = left + columns * (width + MARGIN)
    said = textwrap.fill(note, max(1, int((wide - 2 * MARGIN) / letter)))
    foot = _size(pen, said, font)[1] + 2 * MARGIN if note else 0
    sheet = Image.new("RGB", (wide, bands * band + foot), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((MARGIN, bands * band + MARGIN), said, "black", font)
    for i, head in enumerate(heads):
        y, x = i // columns * band, left + i % columns * (width + MARGIN)
        pen.multiline_text((x + width / 2, y + top - MARGIN), head, "black", font, anchor="md", align="center")
        for row, images in enumerate(rows.values()):
            shown = images[i].resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (x, y + top + row * (height + MARGIN)))
    for row, name in enumerate(names * bands):
        middle = row // len(names) * band + top + row % len(names) * (height + MARGIN) + height / 2
        pen.multiline_text((left - MARGIN, middle), name, "black", font, anchor="rm", align="right")
    return sheet


def font_for(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or where it lacks letters of the text that of the system which lacks the fewest."""
    best = ImageFont.load_default(size=FONT_SIZE)
    fewest = _missing(best, text)
    for name in FONTS if fewest else ():
        with contextlib.suppress(OSError):  # not on this system
            font = ImageFont.truetype(name, FONT_SIZE)
            if _missing(font, text) < fewest:
                best, fewest = font, _missing(font, text)
    return best


def _missing(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    """How many letters of the text the font has none for."""
    none = bytes(font.getmask(NO_LETTER))
    return sum(bytes(font.getmask(letter)) == none for letter in set(text) if not letter.isspace())


def _size(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    box = pen.multiline_textbbox((0, 0), text, font)
    return round(box[2] - box[0]), round(box[3])
