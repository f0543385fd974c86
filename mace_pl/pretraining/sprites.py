"""Captioned images composed of sprites: a sprite on a background, and a caption that says what is seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_rgba
from mace_pl.pretraining.captions import make_caption, read_rows
from mace_pl.pretraining.image_folder import ImagePool, PoolDataModule, to_tensor
from mace_pl.pretraining.sentences import Shares, read_grammar, rich_caption
from mace_pl.pretraining.styles import MANNERS, paint

BACKGROUNDS = {  # the colours that captions name, as RGB
    "white": (255, 255, 255),
    "blue": (120, 170, 240),
    "gray": (170, 170, 170),
    "green": (130, 205, 130),
    "pink": (250, 180, 205),
    "red": (225, 95, 90),
    "yellow": (250, 225, 110),
}
THE = 0.5  # share of the captions with "of a" that say "of the" instead
SCALE = (0.7, 1.0)  # side of the sprite relative to the image's


def background_of(caption: str) -> str:
    """The colour that the caption names, else white: caption and image must agree."""
    words = caption.removesuffix(" background").rsplit(" on a ", 1)
    return words[1] if caption.endswith(" background") and len(words) == 2 and words[1] in BACKGROUNDS else "white"


def place(sprite: Image.Image, colour: str, resolution: int, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """The sprite on a background of ``colour``, and its silhouette: scaled, shifted, half of the time mirrored."""
    image = Image.new("RGBA", (resolution, resolution), BACKGROUNDS[colour])
    side = max(1, round(resolution * rng.uniform(*SCALE)))
    drawn = sprite.resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        drawn = ImageOps.mirror(drawn)
    corner = (rng.randint(0, resolution - side), rng.randint(0, resolution - side))
    image.alpha_composite(drawn, corner)
    shape = Image.new("L", image.size)
    shape.paste(drawn.getchannel("A"), corner)
    return image.convert("RGB"), shape


def compose(sprite: Image.Image, colour: str, resolution: int, rng: random.Random) -> Image.Image:
    """The sprite on a background of ``colour``, placed within the image."""
    return place(sprite, colour, resolution, rng)[0]


class SpriteImages(PoolDataModule):
    """Images of sprites on backgrounds, every concept equally often, rendered once and kept as uint8.

    Args:
        folder: folder with ``metadata.jsonl`` (file_name, concept, style, kind, synonyms) and the RGBA sprites; where
            captions use them, ``sentences.json`` and ``descriptions.json`` too.
        images: how many images to render.
        resolution: their side; a multiple of 8.
        manners: share of the images that are in a painter's manner, which their captions name.
        sentences: share of the captions with a name that are everyday sentences.
        descriptions: share of the captions of a concept with descriptions that describe it without its name.
        batch_size: images per batch and rank.
        seed: of captions, backgrounds, places and order.
    """

    def __init__(
        self,
        folder: str = "mace_pl/pretraining/emoji",
        images: int = 12000,
        resolution: int = 64,
        manners: float = 0.0,
        sentences: float = 0.0,
        descriptions: float = 0.0,
        batch_size: int = 32,
        seed: int = 2024,
    ) -> None:
        super().__init__(batch_size, seed)
        if images < 1:
            raise UserError(f"images={images} must be 1 or more.")
        if resolution < 8 or resolution % 8:
            raise UserError(f"resolution={resolution} must be a multiple of 8, such as 64.")
        for name, share in (("manners", manners), ("sentences", sentences), ("descriptions", descriptions)):
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share} must lie between 0 and 1.")
        self.folder = folder
        self.images = images
        self.resolution = resolution
        self.manners = manners
        self.shares = Shares(sentences, descriptions)

    def make_pool(self) -> ImagePool:
        """Render the images.

        Raises:
            UserError: no metadata.jsonl, a sprite that cannot be read, or no grammar where captions need it.
        """
        folder = resolve(self.folder)
        by_concept: dict[str, list[dict[str, Any]]] = {}
        for row in read_rows(folder / "metadata.jsonl"):
            by_concept.setdefault(row["concept"], []).append(row)
        concepts = sorted(by_concept)
        names = {row["file_name"] for rows in by_concept.values() for row in rows}
        sprites = {name: read_rgba(folder / name, "folder") for name in sorted(names)}
        write = self.captions(folder)
        rng = random.Random(self.seed)
        made = torch.empty(self.images, 3, self.resolution, self.resolution, dtype=torch.uint8)
        captions: list[str] = []
        shown: list[str] = []
        styles: list[str] = []
        for i in range(self.images):
            row = rng.choice(by_concept[concepts[i % len(concepts)]])
            manner = rng.choice(list(MANNERS)) if self.manners and rng.random() < self.manners else None
            captions.append(write(row, manner, rng))
            shown.append(row["concept"])
            styles.append(manner or row["style"])
            colour = background_of(captions[i])
            image, shape = place(sprites[row["file_name"]], colour, self.resolution, rng)
            made[i] = to_tensor(image if manner is None else paint(image, shape, BACKGROUNDS[colour], manner))
        return ImagePool(made, captions, shown, styles)

    def captions(self, folder: Path) -> Callable[[dict[str, Any], str | None, random.Random], str]:
        """What writes the caption of a sprite in a manner: plain templates, or all kinds where any is asked for."""
        if not (self.manners or self.shares.sentences or self.shares.descriptions):

            def plain(row: dict[str, Any], manner: str | None, rng: random.Random) -> str:
                caption = make_caption(row, rng)
                return caption.replace(" of a ", " of the ") if rng.random() < THE else caption

            return plain
        grammar = read_grammar(folder)
        return lambda row, manner, rng: rich_caption(row, manner, grammar, self.shares, rng)
