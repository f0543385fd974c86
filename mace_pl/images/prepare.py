"""What is made before anything is trained: images and masks of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from mace_pl.concepts.concept import Concept
from mace_pl.files.artifacts import slug
from mace_pl.files.identity import made_from
from mace_pl.files.owned import refuse_other_images
from mace_pl.images.generate import Generated, ImageRequest, by_concept, generate_rows, rows_of, write_images
from mace_pl.images.masking import ATTENTION, TargetImages, attend_images, check_masks, segment_images
from mace_pl.images.protocols import RunData
from mace_pl.images.segmentation import NETWORKS
from mace_pl.models.pipeline import scheduled
from mace_pl.models.protocols import Pipeline
from mace_pl.training.progress import image_progress
from mace_pl.training.trainer import Ranks, gathered


def prepare_images(pipeline: Pipeline, data: RunData, ranks: Ranks, seed: int, model: Mapping[str, str]) -> None:
    """Generate this rank's share of the images of the concepts without user images, and make the masks that are
    missing.

    Each rank generates on its own device and writes a concept as soon as its last image is there, so a run that is
    cut off generates only what is missing. Where fewer concepts are missing than there are ranks, these share the
    images of each. All ranks see the same folder.

    Args:
        pipeline: the original model, on its device.
        data: the concepts and where their images lie.
        ranks: this rank among the others.
        seed: of the images.
        model: fingerprints of the model, kept beside the images: those of another model are generated again.

    Raises:
        UserError: a scheduler that cannot generate, or nothing of a target was found in an image without a fallback.
    """
    rank, world = ranks.global_rank, ranks.world_size
    masks_name = ATTENTION if data.mask in NETWORKS else "masks"
    with scheduled(pipeline, data.image_scheduler, "data.image_scheduler"):
        requests = wanted(data, seed, {**model, "scheduler": type(pipeline.scheduler).__name__})
        said = {d.target: f"images of {d.target}" if rank == 0 else "" for d in requests}
        missing = [d for d in requests if not made_from(data.pictures / slug(d.target), asdict(d), said[d.target])]
        for folder in (data.pictures / slug(d.target) for d in missing):
            refuse_other_images(folder)
        missing = ranks.strategy.broadcast(missing)  # of one rank: another may be writing by now
        few = len(missing) < world
        rows = rows_of(missing)[rank::world] if few else rows_of(missing[rank::world])
        with image_progress(ranks.shown, "prepare", len(rows)) as progress:
            generated: Iterable[Generated] = generate_rows(pipeline, rows, data.images_per_batch, progress)
            if few:
                parts = gathered(ranks, list(generated))
                generated = [row for part in parts for row in part] if rank == 0 else []
            for done, images, masks in by_concept(generated):
                write_images(data.pictures / slug(done.target), done, images, masks, masks_name)
    attend_given(pipeline, data, ranks, seed, model)
    mask_images(data, ranks)


def wanted(data: RunData, seed: int, model: Mapping[str, str]) -> list[ImageRequest]:
    """What is generated for the concepts without user images, by a model of these fingerprints and this scheduler."""
    return [
        ImageRequest(
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


def own_share(data: RunData, concepts: Sequence[Concept], ranks: Ranks) -> list[TargetImages]:
    """This rank's share of concepts whose images are there."""
    return [
        TargetImages(concept.target, concept.kind, data.image_files(concept), data.mask_folder(concept).parent)
        for concept in concepts[ranks.global_rank :: ranks.world_size]
    ]


def attend_given(pipeline: Pipeline, data: RunData, ranks: Ranks, seed: int, model: Mapping[str, str]) -> None:
    """Look for the targets in this rank's share of the user's own images by the model's cross-attention."""
    given = [c for c in data.concepts if c.images is not None and attention_of(data, c) != "none"]
    name = ATTENTION if data.mask in NETWORKS else "masks"
    attend_images(pipeline, own_share(data, given, ranks), name, seed, data.image_guidance, model)


def mask_images(data: RunData, ranks: Ranks) -> None:
    """Segment this rank's share of the images where networks make the masks, and check the masks.

    Raises:
        UserError: nothing of a target was found in an image, and there is no fallback.
    """
    ranks.strategy.barrier("pictures")  # another rank may have written them
    groups = own_share(data, [c for c in data.concepts if data.masked(c) and not data.brings_masks(c)], ranks)
    if data.mask in NETWORKS and groups:
        segment_images(groups, data.mask, data.segment, ranks.strategy.root_device)
    for group in groups:
        check_masks(group)


def attention_of(data: RunData, concept: Concept) -> str:
    """What cross-attention is looked at for: the concept's masks, a fallback for them, or nothing."""
    if not data.masked(concept) or data.brings_masks(concept):
        return "none"
    if data.mask in NETWORKS:
        return "attention as fallback" if data.segment.fallback == "attention" else "none"
    return "attention" if data.mask == "attention" else "none"
