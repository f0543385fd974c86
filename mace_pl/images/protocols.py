"""What is asked of the data of a run, which the layers above make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.images.segmentation import Segment


class RunData(Protocol):
    """The concepts of a run with their prompts, images and masks, such as ConceptData.

    Attributes:
        concepts: what is erased.
        templates: the prompts of each concept.
        pictures: the folder of generated images, one folder per concept.
        images_per_concept: how many are generated.
        images_per_batch: how many of them at once.
        image_steps: their denoising steps.
        image_guidance: their guidance scale.
        image_scheduler: the name of their noise scheduler; the model's own when None.
        mask: how masks are made.
        segment: by which networks, where networks make them.
        steps_per_concept: optimizer steps of stage 2.
        images_per_step: over how many images each of them averages.
        concepts_per_batch: how many concepts are trained at once.
        anchors: among what anchors are chosen; empty for the names of the run.
        chosen: the anchors that were chosen, by target.
    """

    concepts: list[Concept]
    templates: list[list[str]]
    pictures: Path
    images_per_concept: int
    images_per_batch: int
    image_steps: int
    image_guidance: float
    image_scheduler: str | None
    mask: str
    segment: Segment
    steps_per_concept: int
    images_per_step: int
    concepts_per_batch: int | Literal["auto"]
    anchors: list[str]
    chosen: dict[str, str]

    def take_anchors(self, chosen: Mapping[str, str]) -> None:
        """Erase to these anchors, by target, where they were not named."""

    def masked(self, concept: Concept) -> bool:
        """Whether the loss looks inside a mask only."""

    def brings_masks(self, concept: Concept) -> bool:
        """Whether the masks are the user's own."""

    def image_files(self, concept: Concept) -> list[Path]:
        """The images that a concept is trained on."""

    def files(self, concept: Concept) -> list[Path]:
        """These and their masks."""

    def mask_folder(self, concept: Concept) -> Path:
        """Where the masks lie."""

    def load(self, concept: Concept, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Images [I, 3, H, W] in [−1, 1] and masks [I, 1, H, W] at a size (height, width)."""
