"""What can be wrong with a mask, and a sheet on which people see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

FULL = 0.95  # of the image: the target can hardly fill more and still be told from what is around it
PIECE = 0.1  # of the mask: smaller pieces are crumbs
FAR = 0.25  # of the image's longer side
GRID = 64  # pieces are looked for on at most so many rows and columns
TINT = (255, 0, 80)
CELL = 512  # pixels of an image on the sheet, at most
SMALL = 192  # and at least: smaller ones are enlarged by a whole number


def pieces(mask: Tensor) -> list[Tensor]:
    """Connected parts of a mask [H, W] as lists of coordinates [P, 2] on a grid; 8 neighbours, largest first."""
    height, width = mask.shape
    scale = max(1.0, max(height, width) / GRID)
    size = (max(1, round(height / scale)), max(1, round(width / scale)))
    inside = F.interpolate(mask[None, None].float(), size=size, mode="area")[0, 0] > 0.5
    labels = torch.arange(1, inside.numel() + 1, dtype=torch.float32).view(size) * inside
    while True:  # every pixel takes the largest label around it until nothing changes
        spread = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    pixels = [(labels == label).nonzero() for label in labels.unique().tolist() if label > 0]
    return sorted(pixels, key=len, reverse=True)


def complaint(mask: Tensor) -> str | None:
    """What is suspicious about a mask [H, W] of zeros and ones; None where nothing is."""
    share = float(mask.float().mean())
    if share == 0:
        return "is empty"
    if share > FULL:
        return f"covers {share:.0%} of its image"
    parts = pieces(mask)
    total = sum(len(part) for part in parts)
    large = [part.float() for part in parts if len(part) >= PIECE * total]
    reach = FAR * GRID * min(1.0, max(mask.shape) / GRID)
    for i, part in enumerate(large):
        if any(float(torch.cdist(part, other).min()) > reach for other in large[:i]):
            return f"is in {len(large)} pieces that are far from each other"
    return None


def contact_sheet(path: Path, images: Sequence[Image.Image], masks: Sequence[Tensor], columns: int = 8) -> None:
    """Write the images, each above its copy on which the mask [H, W] is tinted; all in the first one's size.

    Images larger than ``CELL`` are made smaller, those below ``SMALL`` are enlarged, each pixel as a square.

    Args:
        path: the PNG file.
        images: I images.
        masks: I masks [H, W] of zeros and ones.
        columns: images beside each other.
    """
    longer = max(images[0].size)
    scale = -(-SMALL // longer) if longer < SMALL else min(1.0, CELL / longer)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    width, height = (max(1, round(side * scale)) for side in images[0].size)
    columns = min(columns, len(images))
    colour, blank = (Image.new("RGB", (width, height), name) for name in (TINT, "white"))
    cells: list[Image.Image] = []
    for start in range(0, len(images), columns):
        shown = [image.convert("RGB").resize((width, height), how) for image in images[start : start + columns]]
        stencils = [
            Image.fromarray((mask.cpu().numpy() * 128).astype("uint8")).resize((width, height), how)
            for mask in masks[start : start + columns]
        ]
        tinted = [Image.composite(colour, *pair) for pair in zip(shown, stencils, strict=True)]
        for row in (shown, tinted):
            cells += [*row, *[blank] * (columns - len(row))]
    make_image_grid(cells, rows=len(cells) // columns, cols=columns).save(path)
