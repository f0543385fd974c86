"""Masks of a named thing in images by networks that were trained for it: CLIPSeg, or Grounding DINO and SAM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve

#: masks that networks of their own make
NETWORKS = ("clipseg", "grounded_sam")
BOXES = ("best", "all")
FALLBACKS = ("attention", "none")


@dataclass(frozen=True)
class Segment:
    """How ``clipseg`` and ``grounded_sam`` find a target in its images.

    Args:
        clipseg: folder or hub id of the CLIPSeg model.
        clipseg_threshold: probability from which a pixel belongs to the target.
        detector: folder or hub id of the Grounding DINO model.
        segmenter: folder or hub id of the SAM model.
        box_threshold: score from which a box is kept.
        text_threshold: score from which a word belongs to a box.
        box: ``best`` takes the box of highest score, ``all`` the union of all kept ones.
        words: what is looked for in place of the target's own words, by target or by kind.
        batch_size: images at once.
        half: float16 arithmetic on a GPU.
        fallback: for images in which nothing is found: ``attention`` (the model's own map), ``none`` (the loss
            covers the whole image), or null, which refuses them.
    """

    clipseg: str = "CIDAS/clipseg-rd64-refined"
    clipseg_threshold: float = 0.4
    detector: str = "IDEA-Research/grounding-dino-base"
    segmenter: str = "facebook/sam-vit-huge"
    box_threshold: float = 0.3
    text_threshold: float = 0.25
    box: str = "best"
    words: dict[str, str] = field(default_factory=lambda: {"person": "person"})
    batch_size: int = 8
    half: bool = True
    fallback: str | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: naming the field, its value and the choices.
        """
        if self.box not in BOXES:
            raise UserError(f"data.segment.box={self.box!r} is unknown. Choose from {', '.join(BOXES)}.")
        if self.fallback is not None and self.fallback not in FALLBACKS:
            choices = ", ".join(FALLBACKS)
            raise UserError(f"data.segment.fallback={self.fallback!r} is unknown. Choose from {choices}, or null.")
        if self.batch_size < 1:
            raise UserError(f"data.segment.batch_size={self.batch_size} must be at least 1.")
        for name in ("clipseg_threshold", "box_threshold", "text_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"data.segment.{name}={getattr(self, name)} must be between 0 and 1.")


@dataclass(frozen=True)
class Search:
    """Images of equal size, and the words for what is looked for in them."""

    words: str
    images: Sequence[Image.Image]


def find(method: str, searches: Sequence[Search], settings: Segment, device: torch.device) -> list[Tensor]:
    """Masks [I, H, W] of zeros and ones for each group of images; all zero where nothing was found.

    Each network is loaded once, and the next one only after it was dropped.

    Raises:
        UserError: a network that cannot be loaded.
    """
    if method == "clipseg":
        return clipseg(searches, settings, device)
    return sam(searches, detect(searches, settings, device), settings, device)


@torch.no_grad()
def clipseg(searches: Sequence[Search], settings: Segment, device: torch.device) -> list[Tensor]:
    """Pixels whose probability of being the thing is above the threshold."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor, model = _load(settings.clipseg, "clipseg", CLIPSegProcessor, CLIPSegForImageSegmentation, device)
    by_group = []
    for group in searches:
        masks = []
        for batch in _batches(group.images, settings.batch_size):
            texts = [group.words] * len(batch)
            inputs = processor(text=texts, images=batch, padding=True, return_tensors="pt").to(device)
            with _half(settings, device):
                logits = model(**inputs).logits.float()  # [I, h, w]
            whole = F.interpolate(logits.view(len(batch), 1, *logits.shape[-2:]), size=_size(batch), mode="bilinear")
            masks.append((whole[:, 0].sigmoid() > settings.clipseg_threshold).float().cpu())
        by_group.append(torch.cat(masks))
    return by_group


@torch.no_grad()
def detect(searches: Sequence[Search], settings: Segment, device: torch.device) -> list[list[Tensor]]:
    """Boxes [B, 4] (left, top, right, bottom, in pixels) of each image by Grounding DINO, best first."""
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    processor, model = _load(
        settings.detector, "detector", GroundingDinoProcessor, GroundingDinoForObjectDetection, device
    )
    by_group = []
    for group in searches:
        boxes: list[Tensor] = []
        for batch in _batches(group.images, settings.batch_size):
            texts = [f"{group.words.lower()}."] * len(batch)  # the form of its training texts
            inputs = processor(images=batch, text=texts, return_tensors="pt").to(device)
            with _half(settings, device):
                outputs = model(**inputs)
            results = processor.post_process_grounded_object_detection(
                outputs,
                inputs.input_ids,
                threshold=settings.box_threshold,
                text_threshold=settings.text_threshold,
                target_sizes=[_size(batch)] * len(batch),
            )
            boxes += [chosen_boxes(r["scores"], r["boxes"], settings.box) for r in results]
        by_group.append(boxes)
    return by_group


def chosen_boxes(scores: Tensor, boxes: Tensor, box: str) -> Tensor:
    """The boxes [B, 4] to segment, in order of their scores: the first, or all."""
    ordered = boxes.float().cpu()[scores.float().cpu().argsort(descending=True)]
    return ordered[:1] if box == "best" else ordered


@torch.no_grad()
def sam(
    searches: Sequence[Search], boxes: Sequence[Sequence[Tensor]], settings: Segment, device: torch.device
) -> list[Tensor]:
    """The union of what SAM segments in the boxes of each image."""
    from transformers import SamModel, SamProcessor

    processor, model = _load(settings.segmenter, "segmenter", SamProcessor, SamModel, device)
    by_group = []
    for group, group_boxes in zip(searches, boxes, strict=True):
        masks = torch.zeros(len(group.images), *_size(group.images))
        for count in sorted({len(b) for b in group_boxes} - {0}):  # images with equally many boxes fit into a batch
            places = [i for i, b in enumerate(group_boxes) if len(b) == count]
            for batch in _batches(places, settings.batch_size):
                images = [group.images[i] for i in batch]
                inputs = processor(images, input_boxes=[group_boxes[i].tolist() for i in batch], return_tensors="pt")
                with _half(settings, device):
                    outputs = model(
                        pixel_values=inputs["pixel_values"].float().to(device),
                        input_boxes=inputs["input_boxes"].float().to(device),
                        multimask_output=False,
                    )
                sizes = (inputs["original_sizes"], inputs["reshaped_input_sizes"])
                whole = processor.post_process_masks(outputs.pred_masks.float().cpu(), *sizes)
                masks[batch] = torch.stack([w.reshape(-1, *w.shape[-2:]).any(0) for w in whole]).float()
        by_group.append(masks)
    return by_group


def _load(model_id: str, setting: str, processor: Any, model: Any, device: torch.device) -> tuple[Any, Any]:
    source = resolve(model_id)
    name = str(source) if source.exists() else model_id
    try:
        network = model.from_pretrained(name, use_safetensors=True, dtype=torch.float32)  # that of its input
        return processor.from_pretrained(name), network.eval().to(device)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"data.segment.{setting}={model_id} cannot be loaded: {error}. Give a folder or hub id with the model and "
            f"its processor, or another data.mask."
        ) from error


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _size(images: Sequence[Image.Image]) -> tuple[int, int]:
    """(height, width) of images of equal size."""
    width, height = images[0].size
    return height, width


def _half(settings: Segment, device: torch.device) -> torch.autocast:
    """Half precision where it is of use."""
    return torch.autocast(device.type, torch.float16, enabled=settings.half and device.type == "cuda")


def words_for(target: str, kind: str, words: Mapping[str, str]) -> str:
    """What is looked for in the images of a target."""
    return words.get(target, words.get(kind, target))
