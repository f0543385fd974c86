"""Compare the masks that come from attention with the silhouettes, on images of ten names with a white background.

Run it as ``python scripts/masks.py``. Takes about a minute on two CPU cores.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from runs import run

from mace_pl.images.generate import ImageRequest, generate_concepts
from mace_pl.models.pipeline import load_pipeline

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AWAY = 0.12  # a pixel further than this from white, in the channel that differs most, belongs to the silhouette


def silhouette(image: Image.Image) -> torch.Tensor | None:
    """[H, W] of booleans; None where the border is not white."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"))).float() / 255
    away = (1 - pixels).amax(-1) > AWAY
    border = torch.cat([away[0], away[-1], away[:, 0], away[:, -1]])
    return None if border.float().mean() > 0.1 or not away.any() else away


def main(pretrained: str = "checkpoints/emoji", images: int = 8, steps: int = 30, guidance: float = 5.0) -> None:
    """Print the intersection over union per name, and its mean."""
    pipeline = load_pipeline(pretrained)
    means = []
    requests = [ImageRequest(name, "object", images, steps, guidance, 2024, "attention") for name in TEN]
    for request, generated, masks in generate_concepts(pipeline, requests, images):
        assert masks is not None
        overlaps = []
        for image, mask in zip(generated, masks.bool(), strict=True):
            shape = silhouette(image)
            if shape is not None:
                overlaps.append(float((shape & mask).sum() / (shape | mask).sum()))
        if overlaps:
            means.append(sum(overlaps) / len(overlaps))
        mean = means[-1] if overlaps else float("nan")
        print(f"{request.target:12} {mean:.3f}  ({len(overlaps)} of {images} on white)")
    print(f"{'mean':12} {sum(means) / len(means):.3f}")


if __name__ == "__main__":
    run(main)
