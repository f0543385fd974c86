"""What is made and checked before anything is trained: prompts, pictures and masks of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mace_pl.artifacts import slug
from mace_pl.concepts import Concept, attended_positions
from mace_pl.pictures import draw_concept, prepare_concept
from mace_pl.progress import drawing
from mace_pl.text import text_parts


def check_prompts(pipeline: Any, concepts: Sequence[Concept], templates: Sequence[Sequence[str]]) -> None:
    """Find every target in its templates.

    Raises:
        ValueError: a template that does not show its target, or tokenizers that split it differently.
    """
    tokenizers = text_parts(pipeline)[0]
    for concept, own in zip(concepts, templates, strict=True):
        for template in own:
            found = [attended_positions(tokenizer, template, concept.target) for tokenizer in tokenizers]
            if any(positions != found[0] for positions in found):
                raise ValueError(
                    f"model.pretrained: its tokenizers split {concept.target!r} in {template!r} differently. Use a "
                    f"model whose text encoders share a vocabulary."
                )


def prepare_pictures(pipeline: Any, trainer: Any, seed: int, model: Mapping[str, str]) -> None:
    """Draw the pictures and masks of the targets that bring none.

    Args:
        pipeline: the original model.
        trainer: the Trainer with its data.
        seed: of the pictures.
        model: fingerprints of the model, kept beside the pictures: those of another model are drawn again.
    """
    data = trainer.datamodule
    pipeline.to(trainer.strategy.root_device)
    drawn = [concept for concept in data.concepts if concept.images is None]
    with drawing(trainer, "prepare", len(drawn) * data.images_per_concept) as progress:
        for concept in drawn:
            settings = {
                "target": concept.target,
                "kind": concept.kind,
                "count": data.images_per_concept,
                "steps": data.image_steps,
                "guidance": data.image_guidance,
                "seed": seed,
                "mask": data.mask if data.masked(concept) else "none",
                **model,
            }
            make = partial(
                draw_concept,
                pipeline,
                concept,
                data.images_per_concept,
                data.image_steps,
                data.image_guidance,
                seed,
                data.masked(concept),
                progress,
            )
            if not prepare_concept(data.pictures / slug(concept.target), settings, make):
                progress(data.images_per_concept)  # they were there
