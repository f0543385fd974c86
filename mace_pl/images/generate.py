"""Pictures of a target drawn by the original model, and masks from the model's own cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mace_pl.concepts.templates import PICTURE_TEMPLATE
from mace_pl.concepts.tokens import attended_positions
from mace_pl.files.artifacts import written_aside
from mace_pl.files.identity import note_inputs
from mace_pl.files.owned import PICTURES
from mace_pl.images.files import read_images
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import picture_size
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import draw
from mace_pl.models.text_encoding import text_parts


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
        positions: which of the T tokens are summed for each of N pictures, [N, T].
        size: (height, width) of the maps.
    """

    def __init__(self, positions: list[list[bool]], size: tuple[int, int]) -> None:
        self.positions = torch.tensor(positions)
        self.size = size
        self.sums: dict[int, Tensor] = {}

    def observe(self, name: str, probabilities: Tensor) -> None:
        """Add one layer's probabilities [N or 2N, H, Q, T]; the last N are conditional."""
        conditional = probabilities[-len(self.positions) :]
        pixels = conditional.shape[2]
        positions = self.positions[:, None, None].to(conditional)
        added = (conditional * positions).sum(-1).mean(1).cpu()
        self.sums[pixels] = self.sums.get(pixels, torch.zeros_like(added)) + added

    def maps(self) -> Tensor:
        """[N, H, W] from the layers with most pixels, bilinear."""
        pixels = max(self.sums)
        height, width = self.size
        rows = round((pixels * height / width) ** 0.5)
        grid = self.sums[pixels].view(-1, 1, rows, pixels // rows)
        return F.interpolate(grid, size=self.size, mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True)
class Drawing:
    """All that the pictures of a target depend on; kept beside them as ``settings.json``.

    Attributes:
        target: the concept's name.
        kind: ``object``, ``person`` or ``style``.
        count: how many pictures.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        seed: the run's seed; each picture has a generator of its own, seeded from it, the target and its place.
        mask: ``attention`` for a mask beside each picture, ``attention as fallback``, or ``none``.
        unet: fingerprint of the UNet that draws.
        text_encoder: fingerprint of its text encoder.
        scheduler: class of the scheduler.
    """

    target: str
    kind: str
    count: int
    steps: int
    guidance: float
    seed: int
    mask: str
    unet: str = ""
    text_encoder: str = ""
    scheduler: str = ""

    def seeds(self) -> list[int]:
        """One per picture."""
        generator = stream(self.seed, self.target, "pictures")
        drawn: list[int] = torch.randint(2**31, (self.count,), generator=generator).tolist()
        return drawn


Row = tuple[Drawing, int]  # a drawing and the place of one of its pictures
Drawn = tuple[Row, Image.Image, Tensor]  # with the picture, and its mask [H, W], empty where none is asked for


def rows_of(drawings: Sequence[Drawing]) -> list[Row]:
    """Every picture of every drawing."""
    return [(drawing, i) for drawing in drawings for i in range(drawing.count)]


def draw_rows(
    pipeline: Pipeline, rows: Sequence[Row], batch_size: int, progress: Callable[[int], None] | None = None
) -> Iterator[Drawn]:
    """Pictures in batches that span concepts, those with masks first.

    Args:
        pipeline: the model that draws.
        rows: what to draw; steps and guidance are the same in all of them.
        batch_size: pictures at once.
        progress: called with the number of pictures done since the last call.
    """
    for masked in (True, False):  # cross-attention that is looked at runs another kernel: a batch is of one sort
        group = [row for row in rows if (row[0].mask != "none") == masked]
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            yield from zip(batch, *_draw_batch(pipeline, batch, masked), strict=True)
            if progress is not None:
                progress(len(batch))


def by_concept(drawn: Iterable[Drawn]) -> Iterator[tuple[Drawing, list[Image.Image], Tensor | None]]:
    """A drawing with its pictures, and their masks [I, H, W] where it wants some, once the last of them has come."""
    begun: dict[str, dict[int, tuple[Image.Image, Tensor]]] = {}
    for (drawing, i), picture, mask in drawn:
        own = begun.setdefault(drawing.target, {})
        own[i] = picture, mask
        if len(own) == drawing.count:
            done = [own[place] for place in sorted(begun.pop(drawing.target))]
            masks = None if drawing.mask == "none" else torch.stack([m for _, m in done])
            yield drawing, [p for p, _ in done], masks


def draw_concepts(
    pipeline: Pipeline, drawings: Sequence[Drawing], batch_size: int, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[Drawing, list[Image.Image], Tensor | None]]:
    """All pictures of several concepts: :func:`draw_rows`, :func:`by_concept`."""
    return by_concept(draw_rows(pipeline, rows_of(drawings), batch_size, progress))


def _draw_batch(pipeline: Pipeline, batch: Sequence[Row], masked: bool) -> tuple[list[Image.Image], list[Tensor]]:
    """The picture of each row, and its mask [H, W]; an empty mask where none is asked for."""
    templates = [PICTURE_TEMPLATE[drawing.kind] for drawing, _ in batch]
    prompts = [t.replace("{}", drawing.target) for t, (drawing, _) in zip(templates, batch, strict=True)]
    first = batch[0][0]
    settings = ([drawing.seeds()[i] for drawing, i in batch], first.steps, first.guidance, len(batch))
    if not masked:
        return draw(pipeline, prompts, *settings), [torch.empty(0)] * len(batch)
    positions = [
        attended_positions(text_parts(pipeline)[0][0], t, drawing.target)
        for t, (drawing, _) in zip(templates, batch, strict=True)
    ]
    maps = AttentionMaps(positions, picture_size(pipeline))
    with backbone_of(pipeline).observed(maps.observe):
        pictures = draw(pipeline, prompts, *settings)
    return pictures, [mask_from_map(m) for m in maps.maps()]


def write_pictures(
    folder: Path, drawing: Drawing, pictures: Sequence[Image.Image], masks: Tensor | None, masks_name: str = "masks"
) -> None:
    """Fill a concept's folder (``images/``, ``masks_name/``, ``settings.json``), aside and renamed."""
    with written_aside(folder, "data.pictures", PICTURES) as aside:
        (aside / "images").mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(aside / "images" / f"{i:03d}.png")
        if masks is not None:
            save_masks(aside / masks_name, list(masks), [f"{i:03d}" for i in range(len(masks))])
        note_inputs(aside, asdict(drawing))


def save_masks(folder: Path, masks: Sequence[Tensor], names: Sequence[str]) -> None:
    """Write masks [H, W] of zeros and ones as pictures with these names."""
    folder.mkdir(parents=True)
    for name, mask in zip(names, masks, strict=True):
        Image.fromarray((mask.numpy() * 255).astype(np.uint8)).save(folder / f"{name}.png")


def read_masks(folder: Path, names: Sequence[str]) -> list[Tensor]:
    """Masks [H, W] of zeros and ones that :func:`save_masks` wrote."""
    pictures = read_images([folder / f"{name}.png" for name in names], "masks")
    return [torch.from_numpy(np.asarray(p.convert("L")) > 127).float() for p in pictures]
