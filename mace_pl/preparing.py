"""What is made and checked before anything is trained: prompts, pictures and masks of the targets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_pl.artifacts import slug, written_aside
from mace_pl.concepts import Concept, attended_positions
from mace_pl.masks import complaint, contact_sheet
from mace_pl.pictures import (
    Drawing,
    Drawn,
    by_concept,
    draw_rows,
    is_prepared,
    read_masks,
    read_pictures,
    rows_of,
    save_masks,
    write_pictures,
)
from mace_pl.pipelines import scheduled
from mace_pl.progress import drawing
from mace_pl.segment import NETWORKS, Seen, Segment, find, words_for
from mace_pl.text import text_parts
from mace_pl.trainer import gathered

ATTENTION = "attention_masks"  # the folder of masks that are a fallback only


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
    """Draw this process's share of the pictures of the targets that bring none, and make their masks.

    Each process draws on its own device and writes a concept as soon as its last picture is there, so a run that is
    cut off draws only what is missing. Where fewer concepts are missing than there are processes, these share the
    pictures of each. All processes see the same folder.

    Args:
        pipeline: the original model; on the CPU again when this returns.
        trainer: the Trainer with its data.
        seed: of the pictures.
        model: fingerprints of the model, kept beside the pictures: those of another model are drawn again.

    Raises:
        ValueError: a scheduler that cannot draw, or nothing of a target was found in a picture without a fallback.
    """
    data = trainer.datamodule
    rank, world = data.place()
    masks_name = ATTENTION if data.mask in NETWORKS else "masks"
    with scheduled(pipeline, data.image_scheduler, "data.image_scheduler"):
        drawings = wanted(data, seed, {**model, "scheduler": type(pipeline.scheduler).__name__})
        missing = [d for d in drawings if not is_prepared(data.pictures / slug(d.target), d)]
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
                write_pictures(data.pictures / slug(done.target), done, pictures, masks, masks_name)
    pipeline.to("cpu")  # one network at a time
    mask_pictures(data, trainer)


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


def mask_pictures(data: Any, trainer: Any) -> None:
    """Segment this process's share of the drawn pictures where networks make the masks, and look at the masks.

    Raises:
        ValueError: nothing of a target was found in a picture, and there is no fallback.
    """
    trainer.strategy.barrier("pictures")  # another process may have written them
    rank, world = data.place()
    own = [concept for concept in data.concepts if concept.images is None and data.masked(concept)][rank::world]
    if data.mask in NETWORKS and own:
        segment_pictures(own, data.pictures, data.mask, data.segment, trainer.strategy.root_device)
    for concept in own:
        look_at_masks(data.pictures / slug(concept.target))


def attention_of(data: Any, concept: Concept) -> str:
    """What cross-attention is looked at for while the concept is drawn: its masks, a fallback for them, or nothing."""
    if not data.masked(concept):
        return "none"
    if data.mask in NETWORKS:
        return "attention as fallback" if data.segment.fallback == "attention" else "none"
    return "attention" if data.mask == "attention" else "none"


def segment_pictures(
    concepts: Sequence[Concept], pictures: Path, method: str, settings: Segment, device: torch.device
) -> None:
    """Fill ``masks/`` of every concept that has none made with these settings.

    Args:
        concepts: concepts whose pictures are there.
        pictures: the folder with a folder for each.
        method: ``clipseg`` or ``grounded_sam``.
        settings: of the method.
        device: where its networks run.

    Raises:
        ValueError: naming the pictures in which nothing was found, where there is no fallback.
    """
    left = {}
    for concept in concepts:
        folder = pictures / slug(concept.target)
        images = (folder / "settings.json").read_text(encoding="utf-8")
        words = words_for(concept.target, concept.kind, settings.words)
        record = json.dumps({"method": method, "words": words, "images": images, **asdict(settings)})
        made = folder / "masks" / "settings.json"
        if not made.is_file() or made.read_text(encoding="utf-8") != record:
            left[folder] = (record, Seen(words, read_pictures(folder / "images")))
    found = find(method, [seen for _, seen in left.values()], settings, device) if left else []
    for (folder, (record, seen)), masks in zip(left.items(), found, strict=True):
        filled = fill_empty(masks, folder, seen.words, method, settings.fallback)
        with written_aside(folder / "masks") as aside:
            save_masks(aside, filled)
            (aside / "settings.json").write_text(record, encoding="utf-8")


def fill_empty(masks: Tensor, folder: Path, words: str, method: str, fallback: str | None) -> Tensor:
    """Masks [I, H, W] in which the empty ones are those of the fallback.

    Raises:
        ValueError: an empty mask, and no fallback.
    """
    empty = [i for i, mask in enumerate(masks) if not bool(mask.any())]
    if not empty:
        return masks
    names = ", ".join(str(folder / "images" / f"{i:03d}.png") for i in empty)
    if fallback is None:
        raise ValueError(
            f"data.mask={method} found no {words!r} in {names}. Lower the thresholds of data.segment, look for other "
            f"words by data.segment.words, or allow data.segment.fallback."
        )
    warnings.warn(f"data.mask={method} found no {words!r} in {names}: {fallback} instead.", stacklevel=2)
    other = read_masks(folder / ATTENTION) if fallback == "attention" else torch.ones_like(masks)
    filled = masks.clone()
    filled[empty] = other[empty]
    return filled


def look_at_masks(folder: Path) -> None:
    """Write the contact sheet of a concept's folder, and warn of each mask that is odd."""
    pictures, masks = read_pictures(folder / "images"), read_masks(folder / "masks")
    contact_sheet(folder / "contact_sheet.png", pictures, masks)
    for i, mask in enumerate(masks):
        found = complaint(mask)
        if found is not None:
            file, sheet = folder / "masks" / f"{i:03d}.png", folder / "contact_sheet.png"
            warnings.warn(f"The mask {file} {found}. Look at {sheet}.", stacklevel=2)
