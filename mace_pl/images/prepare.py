"""What is made before anything is trained: pictures and masks of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mace_pl.concepts.concept import Concept
from mace_pl.files.artifacts import slug
from mace_pl.files.identity import made_from
from mace_pl.files.owned import PICTURES, refuse_foreign
from mace_pl.images.generate import Drawing, Drawn, by_concept, draw_rows, rows_of, write_pictures
from mace_pl.images.masking import ATTENTION, Pictured, attend_pictures, look_at_masks, segment_pictures
from mace_pl.images.segmentation import NETWORKS
from mace_pl.models.pipeline import scheduled
from mace_pl.models.protocols import Pipeline
from mace_pl.training.progress import drawing
from mace_pl.training.trainer import Ranks, gathered


def prepare_pictures(pipeline: Pipeline, data: Any, ranks: Ranks, seed: int, model: Mapping[str, str]) -> None:
    """Draw this process's share of the pictures of the targets that bring none, and make the masks that are missing.

    Each process draws on its own device and writes a concept as soon as its last picture is there, so a run that is
    cut off draws only what is missing. Where fewer concepts are missing than there are processes, these share the
    pictures of each. All processes see the same folder.

    Args:
        pipeline: the original model, on its device.
        data: the concepts and where their images lie.
        ranks: this process among the others.
        seed: of the pictures.
        model: fingerprints of the model, kept beside the pictures: those of another model are drawn again.

    Raises:
        UserError: a scheduler that cannot draw, or nothing of a target was found in a picture without a fallback.
    """
    rank, world = ranks.global_rank, ranks.world_size
    masks_name = ATTENTION if data.mask in NETWORKS else "masks"
    with scheduled(pipeline, data.image_scheduler, "data.image_scheduler"):
        drawings = wanted(data, seed, {**model, "scheduler": type(pipeline.scheduler).__name__})
        said = {d.target: f"images of {d.target}" if rank == 0 else "" for d in drawings}
        missing = [d for d in drawings if not made_from(data.pictures / slug(d.target), asdict(d), said[d.target])]
        for place in (data.pictures / slug(d.target) for d in missing):
            refuse_foreign(place, "data.pictures", PICTURES)
        missing = ranks.strategy.broadcast(missing)  # of one process: another may be writing by now
        few = len(missing) < world
        rows = rows_of(missing)[rank::world] if few else rows_of(missing[rank::world])
        with drawing(ranks.shown, "prepare", len(rows)) as progress:
            drawn: Iterable[Drawn] = draw_rows(pipeline, rows, data.images_per_batch, progress)
            if few:
                parts = gathered(ranks, list(drawn))
                drawn = [row for part in parts for row in part] if rank == 0 else []
            for done, pictures, masks in by_concept(drawn):
                write_pictures(data.pictures / slug(done.target), done, pictures, masks, masks_name)
    attend_given(pipeline, data, ranks, seed, model)
    mask_pictures(data, ranks)


def wanted(data: Any, seed: int, model: Mapping[str, str]) -> list[Drawing]:
    """What is drawn for the concepts that bring no pictures, by a model of these fingerprints and this scheduler."""
    return [
        Drawing(
            target=concept.target,
            kind=concept.kind,
            count=data.images_per_concept,
            steps=data.image_steps,
            guidance=data.image_guidance,
            seed=seed,
            mask=attention_of(data, concept),
            **model,
        )
        for concept in data.concepts
        if concept.images is None
    ]


def share(data: Any, concepts: Sequence[Concept], ranks: Ranks) -> list[Pictured]:
    """This process's share of concepts whose pictures are there."""
    return [
        Pictured(concept.target, concept.kind, data.picture_files(concept), data.mask_folder(concept).parent)
        for concept in concepts[ranks.global_rank :: ranks.world_size]
    ]


def attend_given(pipeline: Pipeline, data: Any, ranks: Ranks, seed: int, model: Mapping[str, str]) -> None:
    """Look for the targets in this process's share of the user's own pictures by the model's cross-attention."""
    given = [c for c in data.concepts if c.images is not None and attention_of(data, c) != "none"]
    name = ATTENTION if data.mask in NETWORKS else "masks"
    attend_pictures(pipeline, share(data, given, ranks), name, seed, data.image_guidance, model)


def mask_pictures(data: Any, ranks: Ranks) -> None:
    """Segment this process's share of the pictures where networks make the masks, and look at the masks.

    Raises:
        UserError: nothing of a target was found in a picture, and there is no fallback.
    """
    ranks.strategy.barrier("pictures")  # another process may have written them
    own = share(data, [c for c in data.concepts if data.masked(c) and not data.brings_masks(c)], ranks)
    if data.mask in NETWORKS and own:
        segment_pictures(own, data.mask, data.segment, ranks.strategy.root_device)
    for group in own:
        look_at_masks(group)


def attention_of(data: Any, concept: Concept) -> str:
    """What cross-attention is looked at for: the concept's masks, a fallback for them, or nothing."""
    if not data.masked(concept) or data.brings_masks(concept):
        return "none"
    if data.mask in NETWORKS:
        return "attention as fallback" if data.segment.fallback == "attention" else "none"
    return "attention" if data.mask == "attention" else "none"
