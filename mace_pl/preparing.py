"""What is made and checked before anything is trained: prompts, pictures and masks of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mace_pl.artifacts import slug
from mace_pl.concepts import Concept, attended_positions
from mace_pl.pictures import Drawing, Drawn, by_concept, draw_rows, is_prepared, rows_of, write_pictures
from mace_pl.progress import drawing
from mace_pl.trainer import gathered


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
    cut off draws only what is missing. Where fewer concepts are missing than there are processes, these share the
    pictures of each. All processes see the same folder.

    Args:
        pipeline: the original model; on the CPU again when this returns.
        trainer: the Trainer with its data.
        seed: of the pictures.
        model: fingerprints of the model, kept beside the pictures: those of another model are drawn again.
    """
    data = trainer.datamodule
    rank, world = data.place()
    missing = [d for d in wanted(data, seed, model) if not is_prepared(data.pictures / slug(d.target), d)]
    missing = trainer.strategy.broadcast(missing)  # of one process: another may be writing by now
    few = len(missing) < world
    rows = rows_of(missing)[rank::world] if few else rows_of(missing[rank::world])
    pipeline.to(trainer.strategy.root_device)
    with drawing(trainer, "prepare", len(rows)) as progress:
        drawn: Iterable[Drawn] = draw_rows(pipeline, rows, data.images_per_batch, progress)
        if few:
            parts = gathered(trainer, list(drawn))
            drawn = [row for part in parts for row in part] if rank == 0 else []
        for done, pictures, masks in by_concept(drawn):
            write_pictures(data.pictures / slug(done.target), done, pictures, masks)
    pipeline.to("cpu")


def wanted(data: Any, seed: int, model: Mapping[str, str]) -> list[Drawing]:
    """What is drawn for the concepts that bring no pictures."""
    return [
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
        for concept in data.concepts
        if concept.images is None
    ]
