"""What is made and checked before anything is trained: prompts, pictures and masks of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mace_pl.artifacts import slug
from mace_pl.concepts import Concept, attended_positions
from mace_pl.pictures import Drawing, draw_concepts, is_prepared, write_pictures
from mace_pl.progress import drawing


def check_prompts(pipeline: Any, concepts: Sequence[Concept], templates: Sequence[Sequence[str]]) -> None:
    """Find every target in its templates.

    Raises:
        ValueError: a template that does not show its target.
    """
    for concept, own in zip(concepts, templates, strict=True):
        for template in own:
            attended_positions(pipeline.tokenizer, template, concept.target)


def prepare_pictures(pipeline: Any, trainer: Any, seed: int, model: Mapping[str, str]) -> None:
    """Draw this process's share of the pictures and masks of the targets that bring none.

    Each process draws on its own device and writes a concept as soon as its last picture is there, so a run that is
    cut off draws only what is missing. All processes see the same folder.

    Args:
        pipeline: the original model; on the CPU again when this returns.
        trainer: the Trainer with its data.
        seed: of the pictures.
        model: fingerprints of the model, kept beside the pictures: those of another model are drawn again.
    """
    data = trainer.datamodule
    rank, world = data.place()
    drawings = [
        Drawing(
            target=concept.target,
            kind=concept.kind,
            count=data.images_per_concept,
            steps=data.image_steps,
            guidance=data.image_guidance,
            seed=seed,
            mask=data.mask if data.masked(concept) else "none",
            **model,
        )
        for concept in [c for c in data.concepts if c.images is None][rank::world]
    ]
    missing = [d for d in drawings if not is_prepared(data.pictures / slug(d.target), d)]
    pipeline.to(trainer.strategy.root_device)
    with drawing(trainer, "prepare", sum(d.count for d in drawings)) as progress:
        progress(sum(d.count for d in drawings) - sum(d.count for d in missing))  # they were there
        for drawn, pictures, masks in draw_concepts(pipeline, missing, data.images_per_batch, progress):
            write_pictures(data.pictures / slug(drawn.target), drawn, pictures, masks)
    pipeline.to("cpu")
