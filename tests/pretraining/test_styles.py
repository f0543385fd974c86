"""Painters' manners: deterministic, different from each other, and they leave the background's colour to be seen."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from PIL import Image
from support.tolerances import MANNER, above

from mace_pl.files.paths import resolve
from mace_pl.images.files import read_rgba
from mace_pl.pretraining.sprites import BACKGROUNDS, place
from mace_pl.pretraining.styles import MANNERS, paint, panes, weave

COLLECTIONS = {"noto", "blob", "fluent", "fluent flat", "twemoji", "emojione"}
SPRITES = ("fluent-horse-face.png", "twemoji-dog.png", "noto-ghost.png")


def placed(name: str, colour: str = "white") -> tuple[Image.Image, Image.Image]:
    sprite = read_rgba(resolve("mace_pl/pretraining/emoji/sprites") / name, "folder")
    return place(sprite, colour, 64, random.Random(0))


def painted(name: str, colour: str = "white") -> dict[str, Image.Image]:
    image, shape = placed(name, colour)
    return {manner: paint(image, shape, BACKGROUNDS[colour], manner) for manner in MANNERS}


def test_there_are_eight_manners_that_are_no_collections() -> None:
    assert len(MANNERS) >= 8 and not COLLECTIONS & {name.lower() for name in MANNERS}


@pytest.mark.parametrize("name", SPRITES)
def test_a_manner_gives_the_same_bytes_twice(name: str) -> None:
    first = painted(name, "blue")
    panes.cache_clear()
    weave.cache_clear()
    second = painted(name, "blue")
    for manner, image in first.items():
        assert image.mode == "RGB" and image.size == (64, 64)
        assert image.tobytes() == second[manner].tobytes(), manner


@pytest.mark.parametrize("name", SPRITES)
def test_manners_differ_from_the_sprite_and_from_each_other(name: str) -> None:
    images = {"none": placed(name)[0], **painted(name)}
    for (one, first), (other, second) in itertools.combinations(images.items(), 2):
        difference = np.abs(np.asarray(first, float) - np.asarray(second, float)).mean() / 255
        assert difference > 0, (one, other)
        above(float(difference), MANNER)


def test_the_colour_of_the_background_is_still_the_nearest() -> None:
    for colour, rgb in BACKGROUNDS.items():
        for manner, image in painted("twemoji-dog.png", colour).items():
            pixels, shape = np.asarray(image, float), np.asarray(placed("twemoji-dog.png", colour)[1])
            outside = pixels[(shape == 0) & (pixels.mean(-1) > 60)]  # ink and leads are no background
            typical = np.median(outside, axis=0)
            hues = {name: np.array(c) - np.mean(c) for name, c in BACKGROUNDS.items()}
            chroma = typical - typical.mean()
            if np.ptp(rgb) > 0:  # white and grey have no hue
                nearest = max(hues, key=lambda n: float(chroma @ hues[n]) / (1e-9 + np.linalg.norm(hues[n])))
                assert nearest == colour, manner


def test_an_unknown_manner_is_refused_by_name() -> None:
    image, shape = placed("twemoji-dog.png")
    with pytest.raises(ValueError, match="manner='Nobody' is not known. Choose one of Velmora"):
        paint(image, shape, BACKGROUNDS["white"], "Nobody")
