"""The grid of a report: every image where its prompt and its row say, with words above and beside."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from mace_pl.images.labelled_grid import CELL, FONTS, NO_LETTER, font_for, labelled_grid


def box(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour."""
    rows, columns = np.nonzero((pixels == colour).all(-1))
    assert len(rows), f"{colour} is not on the sheet"
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(("count", "size"), [(1, (8, 8)), (5, (64, 32)), (7, (512, 512))])
def test_images_stand_under_their_prompt_and_beside_their_row(count: int, size: tuple[int, int]) -> None:
    colours = {"original": [(250, 20 * i, 0) for i in range(count)], "erased": [(0, 20 * i, 250) for i in range(count)]}
    rows = {name: [Image.new("RGB", size, colour) for colour in row] for name, row in colours.items()}
    pixels = np.asarray(labelled_grid(rows, [f"a photo of a thing with the number {i}" for i in range(count)]))
    first = box(pixels, colours["original"][0])
    for i in range(count):
        above, below = (box(pixels, colours[name][i]) for name in rows)
        assert max(above[2] - above[0], above[3] - above[1]) == CELL
        assert (above[0], above[2]) == (below[0], below[2]) and above[3] <= below[1], "the edit below its original"
        end = first[1] if above[1] == first[1] else above[1]
        words = pixels[max(0, end - 50) : above[1], above[0] : above[2]]
        assert (words < 128).all(-1).any(), f"no prompt above column {i}"
        for image in (above, below):
            assert (pixels[image[1] : image[3], : first[0]] < 128).all(-1).any(), "no name beside the row"
    assert len({box(pixels, colour)[1] for colour in colours["original"]}) == -(-count // 5)


def test_a_longer_name_of_a_row_takes_more_room_and_is_not_cut() -> None:
    image = [Image.new("RGB", (8, 8), "red")]
    sheets = [
        labelled_grid({"original": image, name: image}, ["a"]) for name in ("erased cat", "erased a far wider thing")
    ]
    lefts = [box(np.asarray(sheet), (255, 0, 0))[0] for sheet in sheets]
    assert lefts[0] <= lefts[1]
    for sheet in sheets:
        assert (np.asarray(sheet)[:, :2] == 255).all(), "words reach the edge"


def test_a_note_stands_below_all_and_moves_nothing() -> None:
    rows, prompts = {"original": [Image.new("RGB", (8, 8), "red")] * 7}, ["a photo of a ship"] * 7
    plain, noted = (np.asarray(labelled_grid(rows, prompts, *note)) for note in ((), ("The first 7 of 70 names.",)))
    assert (noted[: len(plain)] == plain).all()
    assert (noted[len(plain) :] < 128).all(-1).any() and (noted[-1] == 255).all()


def test_letters_that_the_own_font_lacks_are_of_one_that_the_system_has() -> None:
    plain = font_for("ship")
    assert isinstance(plain, ImageFont.FreeTypeFont) and bytes(plain.getmask("ü")) == bytes(plain.getmask(NO_LETTER))
    try:
        ImageFont.truetype(FONTS[0], 17)
    except OSError:
        pytest.skip(f"the system has no {FONTS[0]}")
    found = font_for("Schäferhund über Größe, Łódź, Кошка")
    assert bytes(found.getmask("ü")) != bytes(found.getmask(NO_LETTER))
    assert font_for("ship").getname() == plain.getname(), "the same on all systems where it can be"
