"""Captioned images held in memory, and a folder of them for training and fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_image


class ImageBatch(TypedDict):
    """Images ``pixel_values`` [N, 3, H, W] in [-1, 1], N captions, and the places ``index`` [N] in the pool.

    ``concept`` names what each image shows and ``style`` how; they are empty where the data do not tell.
    """

    pixel_values: Tensor
    caption: list[str]
    concept: list[str]
    style: list[str]
    index: Tensor


class ImagePool:
    """Images of one size with a caption each.

    Args:
        images: [N, 3, H, W], uint8.
        captions: N captions.
        concepts: what each of the N images shows, where that is known.
        styles: the style of each, where that is known.
    """

    def __init__(
        self, images: Tensor, captions: Sequence[str], concepts: Sequence[str] = (), styles: Sequence[str] = ()
    ) -> None:
        self.images = images
        self.captions = list(captions)
        self.concepts = list(concepts)
        self.styles = list(styles)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Tensor) -> ImageBatch:
        """The images at ``indices`` [N]."""
        pixels = self.images[indices].float().div_(127.5).sub_(1.0)
        places = indices.tolist()
        return ImageBatch(
            pixel_values=pixels,
            caption=[self.captions[i] for i in places],
            concept=[self.concepts[i] for i in places] if self.concepts else [],
            style=[self.styles[i] for i in places] if self.styles else [],
            index=indices,
        )


class EndlessBatches(IterableDataset[ImageBatch]):
    """Batches without end: each round shuffles the pool anew; batch k is the same whenever the run started.

    Args:
        pool: what to draw from.
        batch_size: images per batch; a smaller pool gives smaller batches.
        seed: of the order.
        start: the first batch to give, so that a run resumes where it stopped.
        rank: this one; it takes every ``world``-th batch.
        world: number of ranks.
    """

    def __init__(self, pool: ImagePool, batch_size: int, seed: int, start: int, rank: int, world: int) -> None:
        self.pool = pool
        self.size = min(batch_size, len(pool))
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def __iter__(self) -> Iterator[ImageBatch]:
        per_round = len(self.pool) // self.size
        k, round_, order = self.start * self.world + self.rank, -1, torch.empty(0)
        while True:
            if k // per_round != round_:
                round_ = k // per_round
                generator = torch.Generator().manual_seed(self.seed + 7919 * round_)
                order = torch.randperm(len(self.pool), generator=generator)
            start = (k % per_round) * self.size
            yield self.pool.batch(order[start : start + self.size])
            k += self.world


class PoolDataModule(LightningDataModule):
    """Endless batches of a pool that :meth:`make_pool` makes; the base of the data modules of this project.

    Args:
        batch_size: images per batch and rank.
        seed: of the order of the images.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more.")
        self.batch_size = batch_size
        self.seed = seed
        self.pool: ImagePool | None = None

    def make_pool(self) -> ImagePool:
        """All images and captions."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Make the pool, once."""
        if self.pool is None:
            self.pool = self.make_pool()

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Batches from the step that the run is at; stop them with ``trainer.max_steps``."""
        if self.pool is None:
            self.setup("fit")
        assert self.pool is not None
        start, rank, world = 0, 0, 1
        if self.trainer is not None:
            start = self.trainer.global_step * self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = EndlessBatches(self.pool, self.batch_size, self.seed, start, rank, world)
        return DataLoader(batches, batch_size=None)


def to_tensor(image: Image.Image) -> Tensor:
    """The RGB image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class ImageFolder(PoolDataModule):
    """Images of a folder with captions in its ``metadata.jsonl``: one JSON object per line with file_name and text.

    Args:
        folder: the folder; file names are relative to it.
        resolution: side of the square that every image is scaled and cut to; a multiple of 8.
        batch_size: images per batch and rank.
        seed: of the order of the images.
    """

    def __init__(self, folder: str, resolution: int = 512, batch_size: int = 4, seed: int = 2024) -> None:
        super().__init__(batch_size, seed)
        if resolution < 8 or resolution % 8:
            raise UserError(f"resolution={resolution} must be a multiple of 8, such as 512.")
        self.folder = folder
        self.resolution = resolution

    def make_pool(self) -> ImagePool:
        """Read the folder.

        Raises:
            UserError: no metadata.jsonl, a row without file name or caption, or an unreadable image.
        """
        folder = resolve(self.folder)
        metadata = folder / "metadata.jsonl"
        if not metadata.is_file():
            raise UserError(
                f"folder={self.folder} has no metadata.jsonl (looked at {metadata}). Write one line per image: "
                f'{{"file_name": "1.png", "text": "a photo of a ship"}}.'
            )
        images, captions, square = [], [], (self.resolution, self.resolution)
        for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                name, caption = parse_row(line, f"{metadata} line {number}")
                captions.append(caption)
                image = read_image(folder / name, "folder")
                images.append(to_tensor(ImageOps.fit(image, square, Image.Resampling.LANCZOS)))
        if not captions:
            raise UserError(f"folder={self.folder}: {metadata} is empty. Write one line per image.")
        return ImagePool(torch.stack(images), captions)


def parse_row(line: str, where: str) -> tuple[str, str]:
    """File name and caption of one line of ``metadata.jsonl``; ``where`` names it in messages.

    Raises:
        UserError: no JSON object, or without ``file_name`` or ``text`` (or ``caption``).
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"folder: {where} is no JSON ({error}).") from error
    name = row.get("file_name") if isinstance(row, dict) else None
    caption = row.get("text", row.get("caption")) if isinstance(row, dict) else None
    if not isinstance(name, str) or not isinstance(caption, str):
        raise UserError(f"folder: {where} needs the texts file_name and text (or caption), found {line[:80]!r}.")
    return name, caption
