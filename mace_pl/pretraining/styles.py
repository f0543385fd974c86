"""Painters' manners with invented names: deterministic filters of a sprite on its background, by NumPy and Pillow.

A manner gets the image, the silhouette of its sprite and the colour of the background, and gives an image of the same
size. Nothing in it is random: the same input gives the same bytes. H is the height, W the width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mace_pl.errors import UserError

Pixels = NDArray[np.floating[Any]]  # [H, W, 3] in [0, 1]
Field = NDArray[np.floating[Any]]  # [H, W]
Filter = Callable[[Pixels, Field, Pixels], Pixels]

INK = np.array([0.08, 0.08, 0.14], np.float32)
PAPER = np.array([1.0, 0.99, 0.95], np.float32)
NIGHT, GLOW = np.array([0.13, 0.05, 0.35], np.float32), np.array([1.0, 0.72, 0.25], np.float32)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def slopes(field: Pixels | Field) -> Field:
    """Length of the gradient [H, W], the largest of the channels where there are several."""
    channels = field if field.ndim == 3 else field[..., None]
    padded = np.pad(channels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    steepest: Field = np.hypot(down, across).max(axis=-1)
    return steepest


def outline(image: Pixels, shape: Field, strength: float) -> Field:
    """How much ink lies at each place [H, W], in [0, 1]: at borders of the silhouette and of colours within it."""
    return np.clip(strength * np.maximum(slopes(image), slopes(shape)) - 0.25, 0, 1).astype(np.float32)


def blend(below: Pixels, above: Pixels, share: Field) -> Pixels:
    """``above`` over ``below``, as opaque as ``share`` [H, W] says."""
    mixed: Pixels = below + (above - below) * share[..., None]
    return mixed


def smooth(image: Pixels, *filters: ImageFilter.Filter) -> Pixels:
    """The image through filters of Pillow."""
    smoothed = to_image(image)
    for one in filters:
        smoothed = smoothed.filter(one)
    return to_pixels(smoothed)


def cells_mean(image: Pixels, cells: NDArray[np.int64]) -> Pixels:
    """Every cell in its mean colour; ``cells`` [H, W] numbers them from 0."""
    flat, count = cells.ravel(), np.bincount(cells.ravel())
    sums = [np.bincount(flat, weights=image[..., c].ravel()) for c in range(3)]
    means = np.stack(sums, -1) / np.maximum(count, 1)[:, None]
    return means[cells].astype(np.float32)


def saturate(image: Pixels, factor: float) -> Pixels:
    """Colours moved away from their grey by ``factor``."""
    grey = (image @ LUMA)[..., None]
    return np.clip(grey + (image - grey) * factor, 0, 1).astype(np.float32)


def lines(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Ink lines on the bare background."""
    return blend(colour, np.broadcast_to(INK, image.shape), outline(image, shape, 1.6))


def mosaic(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Staggered tiles with light grout."""
    height, width = shape.shape
    y, x = np.mgrid[:height, :width]
    row = y // 4
    shifted = x + row % 2 * 2
    tiles = cells_mean(image, row * (width // 4 + 2) + shifted // 4)
    grout = ((y % 4 == 3) | (shifted % 4 == 3)).astype(np.float32)
    set_ = blend(saturate(tiles, 1.3), np.full_like(image, 0.93), grout * 0.8)
    return blend(set_, np.broadcast_to(INK, image.shape), 0.7 * np.clip(slopes(shape) * 1.5 - 0.5, 0, 1))


def watercolour(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Pale washes that run into each other, darker at their rims, on paper."""
    flat = smooth(image, ImageFilter.MedianFilter(3), ImageFilter.GaussianBlur(1.1))
    soft = to_field(to_image(np.repeat(shape[..., None], 3, -1)).filter(ImageFilter.GaussianBlur(1.6)))
    washes = np.clip(4 * soft * (1 - soft) - 0.35, 0, 1) * 0.45  # pigment gathers where a wash ends
    pale = PAPER + (flat - PAPER) * 0.55
    clouds = weave(shape.shape, 9)[..., None] * 0.16
    return np.clip((pale + clouds * (1 - soft[..., None] * 0.5)) * (1 - washes[..., None]), 0, 1).astype(np.float32)


def duotone(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Two inks by lightness, the background left as it is."""
    light = np.clip((image @ LUMA - 0.15) * 1.35, 0, 1)[..., None]
    return blend(colour, (NIGHT + (GLOW - NIGHT) * light).astype(np.float32), shape)


def pixel_art(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Squares of three pixels in few strong colours, with a dark rim."""
    height, width = shape.shape
    y, x = np.mgrid[:height, :width] // 3
    cells = y * (width // 3 + 1) + x
    strong = np.round(saturate(cells_mean(image, cells), 1.5) * 3) / 3
    covered = cells_mean(np.repeat(shape[..., None], 3, -1), cells)[..., 0] > 0.5
    padded = np.pad(covered, 3)
    around = padded[:-6, 3:-3] | padded[6:, 3:-3] | padded[3:-3, :-6] | padded[3:-3, 6:]
    painted = blend(colour, strong.astype(np.float32), covered.astype(np.float32))
    return blend(painted, np.zeros_like(image), (around & ~covered).astype(np.float32))


def crayon(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Broad diagonal strokes with bare paper between them, on the background too, and coarse contours."""
    height, width = shape.shape
    y, x = np.mgrid[:height, :width]
    wave = np.sin((x + y) * 0.85 + weave(shape.shape, 16) * 1.5)  # about 5 pixels from stroke to stroke
    bare = np.clip(wave * 1.4 - 0.2, 0, 1).astype(np.float32)
    waxy = saturate(image, 1.3) * (0.86 - 0.06 * shape)[..., None]  # strokes show on white too
    drawn = blend(waxy, np.broadcast_to(PAPER, image.shape), bare * (0.9 - 0.3 * shape))
    return blend(drawn, saturate(image, 1.3) * 0.4, outline(image, shape, 0.9))


def stained_glass(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """Panes in strong colours with leads between them and around the shape."""
    cells, leads = panes(*shape.shape)
    inside = cells + (shape > 0.5) * (int(cells.max()) + 1)  # panes end where the shape does
    glass = saturate(cells_mean(image, inside), 1.7)
    rim = np.maximum(np.clip(slopes(shape) * 1.5, 0, 1), 0.8 * outline(image, shape, 0.8))
    return blend(glass * 0.95, np.zeros_like(image), np.maximum(leads * (0.9 - 0.5 * shape), rim).astype(np.float32))


def negative_space(image: Pixels, shape: Field, colour: Pixels) -> Pixels:
    """The shape left bare in a dark field, with what is needed of its inner lines."""
    height, width = shape.shape
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width]).reshape(2, 1, 1) * 2 - 1
    field = np.clip((0.97 - (np.abs(x) ** 4 + np.abs(y) ** 4) ** 0.25) * height / 3, 0, 1).astype(np.float32)
    inner = np.clip(slopes(smooth(image, ImageFilter.MedianFilter(3))) * 1.3 - 0.4, 0, 1) * (shape > 0.9)
    dark = np.maximum(field * (1 - shape), inner).astype(np.float32)
    return blend(colour, np.broadcast_to(INK, image.shape), dark)


#: the manners that captions name; the names are of no real artist
MANNERS: dict[str, Filter] = {
    "Velmora": lines,
    "Quistel": mosaic,
    "Ondrane": watercolour,
    "Brevanik": duotone,
    "Zulmire": pixel_art,
    "Tarquess": crayon,
    "Phelmond": stained_glass,
    "Karsidy": negative_space,
}


@cache
def weave(size: tuple[int, int], scale: int) -> Field:
    """A smooth field [H, W] about 0, up to 1 either way: waves whose lengths have no common period."""
    y, x = np.mgrid[: size[0], : size[1]] / scale
    waves = np.sin(1.7 * x + 0.9 * y) + np.sin(2.3 * y - 1.1 * x + 1) + np.sin(3.1 * x + 2.7 * y + 2)
    field: Field = (waves / 3).astype(np.float32)
    return field


@cache
def panes(height: int, width: int) -> tuple[NDArray[np.int64], Field]:
    """Voronoi cells [H, W] of a bent grid of points some eleven pixels apart, and the leads between them."""
    step = 11
    rows, columns = np.mgrid[-1 : height // step + 2, -1 : width // step + 2]
    py = (rows + 0.38 * np.sin(2.1 * rows + 3.7 * columns)).ravel() * step
    px = (columns + 0.38 * np.sin(4.3 * rows + 1.9 * columns + 1)).ravel() * step
    y, x = np.mgrid[:height, :width]
    distances = np.hypot(y[..., None] - py, x[..., None] - px)
    nearest = np.sort(distances, axis=-1)
    leads = np.clip(1.5 - (nearest[..., 1] - nearest[..., 0]), 0, 1).astype(np.float32)
    return distances.argmin(-1), leads


def to_pixels(image: Image.Image) -> Pixels:
    """[H, W, 3] in [0, 1]."""
    return np.asarray(image.convert("RGB"), np.float32) / 255


def to_field(image: Image.Image) -> Field:
    """[H, W] in [0, 1]."""
    return np.asarray(image.convert("L"), np.float32) / 255


def to_image(pixels: Pixels) -> Image.Image:
    """The RGB image of [H, W, 3]."""
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def paint(image: Image.Image, shape: Image.Image, colour: tuple[int, int, int], manner: str) -> Image.Image:
    """The image in a painter's manner.

    Args:
        image: the sprite on its background, RGB.
        shape: the silhouette of the sprite, of the same size.
        colour: of the background.
        manner: a name of :data:`MANNERS`.

    Raises:
        UserError: no such manner.
    """
    if manner not in MANNERS:
        raise UserError(f"manner={manner!r} is not known. Choose one of {', '.join(MANNERS)}.")
    pixels = to_pixels(image)
    background = np.broadcast_to(np.array(colour, np.float32) / 255, pixels.shape)
    return to_image(MANNERS[manner](pixels, to_field(shape), background))
