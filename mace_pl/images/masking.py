"""Masks of the targets' images, generated or the user's own: made by networks or by attention, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mace_pl.concepts.templates import IMAGE_TEMPLATE
from mace_pl.concepts.tokens import attended_positions
from mace_pl.errors import Advice, UserError
from mace_pl.files.artifacts import written_aside
from mace_pl.files.identity import hash_files, made_from, note_inputs
from mace_pl.images.files import read_images
from mace_pl.images.generate import AttentionMaps, mask_from_map, read_masks, save_masks
from mace_pl.images.mask_checks import complaint, contact_sheet
from mace_pl.images.segmentation import Search, Segment, find, words_for
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import image_latents
from mace_pl.models.protocols import Pipeline

ATTENTION = "attention_masks"  # the folder of masks that are a fallback only
LEVELS = tuple((i + 0.5) / 20 for i in range(10))  # of noise, as shares of the schedule: above half little is seen


@dataclass(frozen=True)
class TargetImages:
    """Images of a target that masks are made for.

    Attributes:
        target: the concept's name.
        kind: of the concept.
        files: its images.
        folder: where ``masks/``, ``attention_masks/`` and ``contact_sheet.png`` go.
    """

    target: str
    kind: str
    files: Sequence[Path]
    folder: Path

    def read(self) -> list[Image.Image]:
        """The images in RGB."""
        return read_images(self.files, f"images of {self.target!r}")

    def inputs(self, **settings: Any) -> dict[str, Any]:
        """All that masks made with these settings depend on."""
        return {"images": hash_files(self.files), **settings}

    def has(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the masks in the folder ``name`` were made from these inputs."""
        return made_from(self.folder / name, inputs, f"masks of {self.target}")

    def write(self, name: str, masks: Sequence[Tensor], inputs: Mapping[str, Any]) -> None:
        """Fill the folder ``name`` with masks [H, W] named like the images, aside and renamed."""
        with written_aside(self.folder / name, "data.pictures") as aside:
            save_masks(aside, masks, [file.stem for file in self.files])
            note_inputs(aside, inputs)

    def masks(self, name: str) -> list[Tensor]:
        """The masks [H, W] in the folder ``name``."""
        return read_masks(self.folder / name, [file.stem for file in self.files])


def segment_images(groups: Sequence[TargetImages], method: str, settings: Segment, device: torch.device) -> None:
    """Fill ``masks/`` of every target that has none made with these settings.

    Args:
        groups: the images of each target.
        method: ``clipseg`` or ``grounded_sam``.
        settings: of the method.
        device: where its networks run.

    Raises:
        UserError: naming the images in which nothing was found, where there is no fallback.
    """
    left: list[tuple[TargetImages, str, dict[str, Any]]] = []
    places: list[tuple[int, list[int]]] = []
    searches: list[Search] = []
    for group in groups:
        words = words_for(group.target, group.kind, settings.words)
        inputs = group.inputs(**{**asdict(settings), "method": method, "words": words})
        if group.has("masks", inputs):
            continue
        images = group.read()
        for size in dict.fromkeys(image.size for image in images):  # the networks take equal sizes at once
            equal = [i for i, image in enumerate(images) if image.size == size]
            places.append((len(left), equal))
            searches.append(Search(words, [images[i] for i in equal]))
        left.append((group, words, inputs))
    by_group: list[dict[int, Tensor]] = [{} for _ in left]
    for (number, equal), masks in zip(places, find(method, searches, settings, device) if left else [], strict=True):
        by_group[number] |= dict(zip(equal, masks, strict=True))
    for (group, words, inputs), group_masks in zip(left, by_group, strict=True):
        in_order = [group_masks[i] for i in range(len(group_masks))]
        group.write("masks", fill_empty(in_order, group, words, method, settings.fallback), inputs)


def fill_empty(
    masks: Sequence[Tensor], group: TargetImages, words: str, method: str, fallback: str | None
) -> list[Tensor]:
    """Masks [H, W] in which the empty ones are those of the fallback.

    Raises:
        UserError: an empty mask, and no fallback.
    """
    empty = [i for i, mask in enumerate(masks) if not bool(mask.any())]
    if not empty:
        return list(masks)
    names = ", ".join(str(group.files[i]) for i in empty)
    if fallback is None:
        raise UserError(
            f"data.mask={method} found no {words!r} in {names}. Lower the thresholds of data.segment, look for other "
            f"words by data.segment.words, or allow data.segment.fallback."
        )
    warnings.warn(f"data.mask={method} found no {words!r} in {names}: {fallback} instead.", Advice, stacklevel=2)
    by_attention = fallback == "attention"
    other = group.masks(ATTENTION) if by_attention else [torch.ones_like(mask) for mask in masks]
    return [other[i] if i in empty else mask for i, mask in enumerate(masks)]


def attend_images(
    pipeline: Pipeline, groups: Sequence[TargetImages], name: str, seed: int, guidance: float, model: Mapping[str, str]
) -> None:
    """Fill the folder ``name`` of every target that has none made this way, by :func:`noised_masks`.

    Args:
        pipeline: the original model.
        groups: given images of each target.
        name: ``masks`` or ``attention_masks``.
        seed: of the noise.
        guidance: scale that a distilled UNet is told.
        model: fingerprints of the model, kept beside the masks.
    """
    for group in groups:
        inputs = group.inputs(method="attention", kind=group.kind, seed=seed, guidance=guidance, levels=LEVELS, **model)
        if not group.has(name, inputs):
            group.write(name, noised_masks(pipeline, group, seed, guidance), inputs)


@torch.no_grad()
def noised_masks(pipeline: Pipeline, group: TargetImages, seed: int, guidance: float) -> list[Tensor]:
    """Masks [H, W] of given images, each of its image's size, from the model's own cross-attention.

    A generated image's attention is averaged over the steps that generate it. A given one has no such steps, so it is
    looked at under ten levels of noise (on the bundled model's images as close to the silhouettes as while they are
    generated).
    """
    template = IMAGE_TEMPLATE[group.kind]
    backbone = backbone_of(pipeline)
    text, pooled = backbone.encode([template.replace("{}", group.target)])
    positions = attended_positions(backbone.tokenizers[0], template, group.target)
    extra = backbone.inputs(pooled, 1, guidance)
    height, width = backbone.image_size
    steps = backbone.timesteps
    masks = []
    for i, image in enumerate(group.read()):
        fitting = image.resize((width, height), Image.Resampling.LANCZOS)
        latents, maps = image_latents(pipeline, [fitting]), AttentionMaps([positions], (height, width))
        generator = stream(seed, group.target, "noise", i)
        with backbone.observed(maps.observe):
            for level in LEVELS:
                t = torch.tensor(int(level * steps), device=latents.device)
                noise = torch.randn(latents.shape, generator=generator).to(latents)
                backbone.predict(backbone.noised(latents, noise, t), t, text, extra)
        mask = mask_from_map(maps.maps()[0])
        masks.append(F.interpolate(mask[None, None], size=image.size[::-1], mode="nearest")[0, 0])
    return masks


def check_masks(group: TargetImages) -> None:
    """Write the contact sheet of a target's images, and warn of each suspicious mask (empty, full or fragmented)."""
    masks, sheet = group.masks("masks"), group.folder / "contact_sheet.png"
    contact_sheet(sheet, group.read(), masks)
    for file, mask in zip(group.files, masks, strict=True):
        problem = complaint(mask)
        if problem is not None:
            name = group.folder / "masks" / f"{file.stem}.png"
            warnings.warn(f"The mask {name} {problem}. Look at {sheet}.", Advice, stacklevel=2)
