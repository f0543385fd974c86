"""Images of what a hardening leaves as it was: by the original, by the edit and by the hardened edit, of one seed."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from mace_pl.concepts.anchors import nearest
from mace_pl.hardening.originals import Look
from mace_pl.hardening.wording import Wording
from mace_pl.images.labelled_grid import labelled_grid
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import scheduled
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.training.progress import image_progress

SHOWN = 4  # targets, and names to preserve that are next to them, where a hardening takes most along
FILE = "before_after.png"


def shown_prompts(pipeline: Pipeline, wording: Wording) -> list[str]:
    """Prompts of the first targets and of the preserved names that are nearest to all targets."""
    targets = [wording.shown(c, 1)[0][0] for c in range(min(SHOWN, len(wording.targets)))]
    beside = [wording.names[i] for i in nearest(pipeline, wording.names, wording.targets, SHOWN)]
    return targets + [wording.templates[0].replace("{}", name) for name in beside]


def compared(
    pipeline: Pipeline,
    wording: Wording,
    look: Look,
    seed: int,
    edits: Mapping[str, Mapping[str, Tensor]],
    shown: bool = False,
) -> Image.Image:
    """A row of images for each edit, the same prompts and seed in all; the network has the last edit's weights then.

    Args:
        pipeline: on its device.
        wording: of the hardening.
        look: how images are generated.
        seed: of every image.
        edits: weights by layer name under the name of their row; all of the same layers.
        shown: whether there is a progress bar.
    """
    prompts, rows = shown_prompts(pipeline, wording), {}
    with (
        scheduled(pipeline, look.scheduler, "data.image_scheduler"),
        image_progress(shown, "images of the edits", len(edits) * len(prompts)) as progress,
    ):
        for name, weights in edits.items():
            backbone_of(pipeline).set_key_values(weights)
            settings = (look.steps, look.guidance, look.batch_size)
            rows[name] = generate(pipeline, prompts, [seed] * len(prompts), *settings, progress=progress)
    return labelled_grid(rows, prompts)
