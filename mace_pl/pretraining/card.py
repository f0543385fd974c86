"""The card of a fine-tuned pipeline; that of the pipeline that it came from speaks of other weights."""

from __future__ import annotations

from pathlib import Path

from mace_pl.files.artifacts import written_aside

CARD = "README.md"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # of a card

TEXT = """---
library_name: diffusers
pipeline_tag: text-to-image
---

# Fine-tuned from {source}

The UNet of {source}, trained further by `train.py fit` for {steps} steps on {images} captioned images;
its weights are an average over the last of them. Every other part is a copy. What the card of {source} measures was
not measured again; its licence, and those of the images, hold here too.
"""


def parts_of(folder: Path) -> list[Path]:
    """What a fine-tuned pipeline takes over: no hidden files, no card and none of its images."""
    found = (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != CARD)
    return sorted(p for p in found if p.suffix.lower() not in IMAGES)


def write_card(folder: Path, source: str, steps: int, images: int) -> None:
    """Write the card.

    Args:
        folder: of the pipeline.
        source: name of the one that it came from.
        steps: of the training.
        images: that it saw.
    """
    with written_aside(folder / CARD) as aside:
        aside.write_text(TEXT.format(source=source, steps=steps, images=images), encoding="utf-8")
