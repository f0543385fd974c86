"""Concepts, their prompts, images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor

from mace_pl.concepts.concept import Concept, read_concepts, templates_of
from mace_pl.errors import UserError
from mace_pl.files.artifacts import slug
from mace_pl.files.paths import resolve
from mace_pl.images.files import by_stem, list_images, read_image, read_images, read_mask
from mace_pl.images.segmentation import NETWORKS, Segment

MASKS = ("attention", *NETWORKS, "none")


def load_masks(folder: Path, pictures: Path, setting: str) -> list[Tensor]:
    """Masks [1, H, W] of zeros and ones for the images of a folder, matched by name; each of its image's shown size.

    Raises:
        UserError: another number or other names than the images, another size, or an empty mask.
    """
    masks = by_stem(list_images(folder, setting), setting)
    images = by_stem(list_images(pictures, "images"), "images")
    if masks.keys() != images.keys():
        alone = sorted(masks.keys() ^ images.keys())
        raise UserError(
            f"{setting}: {folder} has {len(masks)} masks, {pictures} has {len(images)} images; their names must be the "
            f"same, and {', '.join(alone[:3])} is on one side only. Give one mask per image."
        )
    return [_mask(masks[name], image, setting)[None] for name, image in images.items()]


def _mask(file: Path, image: Path, setting: str) -> Tensor:
    """The mask [H, W] of zeros and ones."""
    mask, size = read_mask(file, setting), read_image(image, "images").size
    if mask.size != size:
        raise UserError(
            f"{setting}: {file} is {mask.size}, its image {image.name} is {size} as shown (turned where its EXIF says "
            f"so). Give equal sizes."
        )
    pixels = np.asarray(mask)
    if pixels.max() <= 127:
        raise UserError(
            f"{setting}: {file} is empty (no pixel above 127, the lightest has {pixels.max()} of 255). Mark the target "
            f"white, or use masks: none."
        )
    return torch.from_numpy(pixels > 127).float()


class ConceptData(LightningDataModule):
    """The concepts to erase, their prompts, and their pictures with masks.

    Args:
        concepts: a list of {target, anchor, kind: object|person|style, optional images, masks}, or a CSV or YAML file.
        templates: prompts with ``{}`` where the target goes, as a list or a text file, or one of these by kind or
            target, which a YAML file (``erase.py prompts``) may hold too; default at least 30 of our own per kind.
        pictures: folder in which pictures drawn by the original model are kept, one folder per concept.
        images_per_concept: how many pictures the original model draws of each target.
        image_steps: denoising steps for those pictures.
        image_guidance: their classifier-free guidance scale.
        image_scheduler: the scheduler of diffusers that draws them and the report's, such as
            DPMSolverMultistepScheduler; the model's own when None.
        images_per_batch: how many of them are drawn at once, of one concept or of several.
        mask: masks of the pictures: ``attention`` (from the model's own cross-attention), ``clipseg``,
            ``grounded_sam`` (Grounding DINO finds boxes, SAM segments what is in them) or ``none``. It makes those of
            your own pictures too, into ``pictures``, unless they bring theirs in a folder.
        segment: networks and thresholds of ``clipseg`` and ``grounded_sam``.
        steps_per_concept: optimizer steps per concept in stage 2.
        images_per_step: images (each with a prompt, a timestep and noise of its own) that a step of a concept averages
            over; published: 1. Where concepts are fewer than processes, these share them.
        concepts_per_batch: how many concepts are trained side by side; ``auto`` takes as many as the free memory holds.
    """

    def __init__(
        self,
        concepts: str | list[dict[str, Any]],
        templates: str | list[str] | dict[str, str | list[str]] | None = None,
        pictures: str = "checkpoints/pictures",
        images_per_concept: int = 8,
        image_steps: int = 30,
        image_guidance: float = 7.5,
        image_scheduler: str | None = None,
        images_per_batch: int = 8,
        mask: str = "attention",
        steps_per_concept: int = 50,
        concepts_per_batch: int | Literal["auto"] = "auto",
        segment: Segment = Segment(),  # noqa: B008 - frozen; jsonargparse shows its fields
        images_per_step: int = 1,
    ) -> None:
        super().__init__()
        if mask not in MASKS:
            raise UserError(
                f"data.mask={mask!r} is unknown. Choose one of {', '.join(MASKS)}, or give masks per concept."
            )
        counts = {
            "images_per_concept": images_per_concept,
            "image_steps": image_steps,
            "images_per_batch": images_per_batch,
            "steps_per_concept": steps_per_concept,
            "images_per_step": images_per_step,
            "concepts_per_batch": 1 if concepts_per_batch == "auto" else concepts_per_batch,
        }
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1.")
        self.concepts: list[Concept] = read_concepts(concepts)
        self.templates = templates_of(templates, self.concepts)
        self.pictures = Path(pictures)
        self.images_per_concept = images_per_concept
        self.image_steps = image_steps
        self.image_guidance, self.image_scheduler = image_guidance, image_scheduler
        self.mask, self.segment = mask, segment
        self.steps_per_concept, self.images_per_step = steps_per_concept, images_per_step
        self.images_per_batch = images_per_batch
        self.concepts_per_batch: int | Literal["auto"] = concepts_per_batch
        for concept in self.concepts:  # the user's own files are checked before anything is computed
            if concept.images is not None:
                folder = resolve(concept.images)
                files = list_images(folder, "data.concepts: images")
                read_images(files, "data.concepts: images")
                if self.brings_masks(concept):
                    load_masks(self.mask_folder(concept), folder, "data.concepts: masks")
                elif self.masked(concept):
                    by_stem(files, "data.concepts: images")

    def masked(self, concept: Concept) -> bool:
        """Whether the loss looks inside a mask only; styles without masks of their own have every pixel count."""
        if concept.masks == "none":
            return False
        return self.brings_masks(concept) or (concept.kind != "style" and self.mask != "none")

    def brings_masks(self, concept: Concept) -> bool:
        """Whether the masks are the user's own."""
        return concept.images is not None and concept.masks not in (None, "none")

    def picture_files(self, concept: Concept) -> list[Path]:
        """The pictures that a concept is trained on."""
        return list_images(self.picture_folder(concept), "images")

    def files(self, concept: Concept) -> list[Path]:
        """The pictures and masks that a concept is trained on."""
        masks = list_images(self.mask_folder(concept), "masks") if self.masked(concept) else []
        return self.picture_files(concept) + masks

    def picture_folder(self, concept: Concept) -> Path:
        """Where the pictures of a concept are: the user's folder, or the one that ``prepare`` fills."""
        return resolve(concept.images) if concept.images else self.pictures / slug(concept.target) / "images"

    def mask_folder(self, concept: Concept) -> Path:
        """Where the masks of a concept are: the user's folder, or the one that ``prepare`` fills."""
        if self.brings_masks(concept):
            return resolve(str(concept.masks))
        folder = self.pictures / slug(concept.target)  # drawn pictures and the user's own may take turns there
        return (folder / "own" if concept.images else folder) / "masks"

    def load(self, concept: Concept, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pictures [I, 3, H, W] in [−1, 1] and masks [I, 1, H, W] at the model's size (height, width)."""
        folder = self.picture_folder(concept)
        height, width = size
        pictures = read_images(list_images(folder, "images"), "images")
        arrays = [np.asarray(p.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) for p in pictures]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
        if not self.masked(concept):
            return pixels, torch.ones(len(pixels), 1, height, width)
        masks = load_masks(self.mask_folder(concept), folder, f"masks of {concept.target!r}")
        resized = [torch.nn.functional.interpolate(mask[None], size=size, mode="nearest") for mask in masks]
        return pixels, torch.cat(resized)

    def train_dataloader(self) -> Any:
        """The module's schedule: it knows how many concepts fit side by side and which steps are done."""
        assert self.trainer is not None
        return self.trainer.lightning_module.train_dataloader()
