"""Odd masks are named for what they are, and the contact sheet shows them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tolerances import BLENDED, PIECES, close

from mace_pl.images.mask_checks import TINT, complaint, contact_sheet, pieces


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Ones inside of boxes (top, bottom, left, right)."""
    found = torch.zeros(size)
    for top, bottom, left, right in boxes:
        found[top:bottom, left:right] = 1
    return found


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], "is empty"),
        ([(0, 128, 0, 126)], "covers 98% of its image"),
        ([(20, 100, 30, 90)], None),
        ([(0, 40, 0, 40), (88, 128, 88, 128)], "is in 2 pieces that are far from each other"),
        ([(0, 40, 0, 40), (0, 40, 50, 90)], None),  # two pieces, close to each other
        ([(0, 60, 0, 60), (120, 126, 120, 126)], None),  # a crumb
        ([(0, 128, 0, 4), (0, 4, 0, 128), (0, 128, 124, 128)], None),  # one piece round three sides
    ],
)
def test_what_is_odd(boxes: list[tuple[int, int, int, int]], expected: str | None) -> None:
    assert complaint(mask(*boxes)) == expected


@pytest.mark.parametrize("size", [(16, 16), (128, 64), (512, 512)])
def test_pieces_are_counted_at_every_size(size: tuple[int, int]) -> None:
    height, width = size
    quarter = (height // 4, width // 4)
    found = pieces(mask((0, quarter[0], 0, quarter[1]), (2 * quarter[0], height, 0, width), size=size))
    assert len(found) == 2
    close(len(found[0]) / len(found[1]), 8, PIECES)


def test_the_sheet_shows_images_above_tinted_copies(tmp_path: Path) -> None:
    images = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white", "black")]
    masks = torch.stack([mask((0, 8, 0, 16), size=(16, 16))] * 3)
    contact_sheet(tmp_path / "sheet.png", images, masks, columns=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (384, 768)  # small images are enlarged, a pixel to twelve
    sheet = sheet.resize((32, 64), Image.Resampling.NEAREST)
    assert sheet.getpixel((4, 4)) == (0, 0, 0) and sheet.getpixel((20, 4)) == (255, 255, 255)
    red, green, blue = sheet.getpixel((4, 20))  # inside of the mask
    close([red, green, blue], [TINT[0] / 2, 0, TINT[2] / 2], BLENDED)
    assert sheet.getpixel((4, 28)) == (0, 0, 0)  # outside
    assert sheet.getpixel((4, 36)) == (0, 0, 0)  # the third image is in the second row
