"""Pictures of a target drawn by the original model, and masks from the model's own cross-attention."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mace_pl.artifacts import written_aside
from mace_pl.attention import observed
from mace_pl.concepts import Concept, attended_positions
from mace_pl.lora import stream
from mace_pl.pipelines import picture_size
from mace_pl.sampling import draw
from mace_pl.templates import PICTURE_TEMPLATE
from mace_pl.text import text_parts


def otsu(values: Tensor) -> float:
    """The threshold that splits values into two classes of greatest between-class variance (Otsu 1979)."""
    ordered = values.flatten().double().sort().values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)
    low = ordered.cumsum(0)[:-1] / below
    high = (ordered.sum() - ordered.cumsum(0)[:-1]) / (n - below)
    best = int((below * (n - below) * (high - low) ** 2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def mask_from_map(attention: Tensor) -> Tensor:
    """A mask [H, W] of zeros and ones from an attention map [H, W], by rule.

    The map is split by Otsu's threshold. Which side is the target depends on the model: a target seldom fills the
    border of the picture, so the side with the smaller mean on the border is taken (measured on the bundled model).
    """
    inside = attention > otsu(attention)
    border = torch.ones_like(inside)
    border[1:-1, 1:-1] = False
    if inside[border].float().mean() > 0.5:
        inside = ~inside
    return inside.float()


class AttentionMaps:
    """Averages a batch's cross-attention to some tokens over steps, heads and the finest layers.

    Args:
        positions: which of the T tokens are summed.
        size: (height, width) of the maps.
        count: N pictures; with classifier-free guidance they are the last of the 2N rows.
    """

    def __init__(self, positions: list[bool], size: tuple[int, int], count: int) -> None:
        self.positions = torch.tensor(positions)
        self.size, self.count = size, count
        self.sums: dict[int, Tensor] = {}

    def observe(self, name: str, probabilities: Tensor) -> None:
        """Add one layer's probabilities [N or 2N, H, Q, T]."""
        conditional = probabilities[-self.count :]
        pixels = conditional.shape[2]
        added = conditional[..., self.positions.to(conditional.device)].sum(-1).mean(1).cpu()
        self.sums[pixels] = self.sums.get(pixels, torch.zeros_like(added)) + added

    def maps(self) -> Tensor:
        """[N, H, W] from the layers with most pixels, bilinear."""
        pixels = max(self.sums)
        height, width = self.size
        rows = round((pixels * height / width) ** 0.5)
        grid = self.sums[pixels].view(-1, 1, rows, pixels // rows)
        return F.interpolate(grid, size=self.size, mode="bilinear", align_corners=False)[:, 0]


def draw_concept(
    pipeline: Any,
    concept: Concept,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    with_masks: bool,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Image.Image], Tensor | None]:
    """``count`` seeded pictures of the concept, and masks [I, H, W] from attention where asked for."""
    template = PICTURE_TEMPLATE[concept.kind]
    prompts = [template.replace("{}", concept.target)] * count
    generator = stream(seed, concept.target, "pictures")
    seeds = torch.randint(2**31, (count,), generator=generator).tolist()
    if not with_masks:
        return draw(pipeline, prompts, seeds, steps, guidance, count, progress), None
    positions = attended_positions(text_parts(pipeline)[0][0], template, concept.target)
    maps = AttentionMaps(positions, picture_size(pipeline), count)
    with observed(pipeline.unet, maps.observe):
        pictures = draw(pipeline, prompts, seeds, steps, guidance, count, progress)
    return pictures, torch.stack([mask_from_map(m) for m in maps.maps()])


def prepare_concept(
    folder: Path,
    settings: dict[str, Any],
    make: Callable[[], tuple[list[Image.Image], Tensor | None]],
    masks_name: str = "masks",
) -> bool:
    """Fill a concept's folder (``images/``, masks, ``settings.json``) unless it was filled with these settings.

    Args:
        folder: the concept's.
        settings: what the pictures depend on.
        make: draws pictures and masks.
        masks_name: name of the folder that gets the masks, if there are any.

    Returns:
        Whether pictures were made.
    """
    record = folder / "settings.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == settings:
        return False
    pictures, masks = make()
    with written_aside(folder) as aside:
        (aside / "images").mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(aside / "images" / f"{i:03d}.png")
        if masks is not None:
            save_masks(aside / masks_name, masks)
        (aside / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return True


def save_masks(folder: Path, masks: Tensor) -> None:
    """Write masks [I, H, W] of zeros and ones as pictures, named like those of :func:`prepare_concept`."""
    folder.mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray((mask.numpy() * 255).astype(np.uint8)).save(folder / f"{i:03d}.png")


def read_pictures(folder: Path) -> list[Image.Image]:
    """The pictures in a folder that this project wrote, in order."""
    found = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as picture:
            found.append(picture.convert("RGB"))
    return found


def read_masks(folder: Path) -> Tensor:
    """Masks [I, H, W] of zeros and ones that :func:`save_masks` wrote."""
    return torch.stack([torch.from_numpy(np.asarray(p.convert("L")) > 127).float() for p in read_pictures(folder)])
