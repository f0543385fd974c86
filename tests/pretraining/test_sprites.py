"""Images composed of sprites: seeded, and in agreement with their captions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from mace_pl.pretraining.captions import COLOURS
from mace_pl.pretraining.sprites import BACKGROUNDS, SpriteImages, background_of, compose


def test_pool_is_seeded_and_agrees_with_its_captions() -> None:
    data = SpriteImages(images=60, resolution=32)
    data.setup("fit")
    again = SpriteImages(images=60, resolution=32).make_pool()
    other = SpriteImages(images=60, resolution=32, seed=1).make_pool()
    assert data.pool is not None and len(data.pool) == 60
    assert data.pool.captions == again.captions != other.captions
    assert torch.equal(data.pool.images, again.images)
    assert data.pool.images.shape == (60, 3, 32, 32) and data.pool.images.dtype == torch.uint8
    for image, caption in zip(data.pool.images, data.pool.captions, strict=True):
        colour = torch.tensor(BACKGROUNDS[background_of(caption)], dtype=torch.uint8)
        corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1]].T
        assert (corners == colour).all(dim=1).any(), caption


def test_every_concept_comes_equally_often() -> None:
    data = SpriteImages(images=186, resolution=8)  # 93 concepts, twice
    ships = [c for c in data.make_pool().captions if any(w in c.split() for w in ("ship", "boat", "vessel"))]
    assert 1 <= len(ships) <= 2


@pytest.mark.parametrize(
    ("caption", "colour"),
    [
        ("a photo of a ship", "white"),
        ("ship in noto style on a blue background", "blue"),
        ("a ship on a purple background", "white"),
        ("background", "white"),
    ],
)
def test_background_of(caption: str, colour: str) -> None:
    assert background_of(caption) == colour


def test_every_colour_of_the_captions_can_be_painted() -> None:
    assert set(COLOURS) == set(BACKGROUNDS) - {"white"}


def test_sprite_lies_within_the_image_and_covers_its_scale() -> None:
    sprite = Image.new("RGBA", (96, 96), (1, 2, 3, 255))
    for seed in range(20):
        image = compose(sprite, "green", 64, random.Random(seed))
        dark = sum(1 for pixel in list(image.get_flattened_data()) if pixel == (1, 2, 3))
        assert 45**2 <= dark <= 64**2 and dark == round(dark**0.5) ** 2  # whole squares: nothing is cut off


def test_bad_settings_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resolution=20"):
        SpriteImages(resolution=20)
    with pytest.raises(ValueError, match="images=0"):
        SpriteImages(images=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        SpriteImages(batch_size=0)
    with pytest.raises(ValueError, match="metadata.jsonl"):
        SpriteImages(folder=str(tmp_path)).make_pool()
    row = '{"file_name": "gone.png", "concept": "ship", "style": "noto", "kind": "object"}'
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match="gone.png"):
        SpriteImages(folder=str(tmp_path)).make_pool()
