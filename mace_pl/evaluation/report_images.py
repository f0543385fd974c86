"""The images of a report, on disk while it is made: any rank generates them, one writes the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mace_pl.files.artifacts import slug

ORIGINAL = "original"  # the model that was not edited, among the models that are scored
WIDEST = 256  # pixels of an image in a report


class Gallery:
    """A folder of some images of each model and word.

    Args:
        folder: where they lie.
        cells: which (template, seed) of each word are shown, in order; seeds count from 0.
        first_seed: what a seed of 0 stands for.
    """

    def __init__(self, folder: Path, cells: Sequence[tuple[int, int]], first_seed: int = 0) -> None:
        self.folder, self.cells, self.first_seed = folder, list(cells), first_seed

    def path(self, model: str, word: str, cell: tuple[int, int]) -> Path:
        """The file of an image."""
        return self.folder / slug(model) / f"{slug(word)}_{cell[0]}_{cell[1]}.png"

    def save(self, model: str, word: str, cell: tuple[int, int], image: Image.Image) -> None:
        """Write an image, if it is one of those that are shown."""
        if cell in self.cells:
            path = self.path(model, word, cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            small = image.copy()
            small.thumbnail((WIDEST, WIDEST))
            small.save(path)

    def pairs(self, models: tuple[str, str], word: str) -> list[tuple[tuple[int, int], Path, Path]]:
        """(cell, image of the first model, image of the second) where both are there."""
        candidates = [(cell, self.path(models[0], word, cell), self.path(models[1], word, cell)) for cell in self.cells]
        return [(cell, a, b) for cell, a, b in candidates if a.is_file() and b.is_file()]


def first_cells(templates: int, seeds: int, count: int) -> list[tuple[int, int]]:
    """The first ``count`` (template, seed), all templates of a seed before the next seed."""
    return [(template, seed) for seed in range(seeds) for template in range(templates)][:count]
