"""Which images show nothing: an edit can leave a white square where its anchor should be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Measured in this contrast, by the bundled sprites and model: white squares that an erased bird left, 0.006 to 0.0065;
#: smears that it left elsewhere, 0.13 and more; the original's faintest image of 94 names, 0.15; the faintest sprite on
#: white (mouse, rabbit), 0.16; the faintest on a background of its colour (a red key on red), 0.056. The threshold is
#: half of that, and five times the contrast of a white square.
EMPTY = 0.03
SIDE = 64  # pixels that an image is reduced to: grain that the eye does not see counts for nothing


def contrast(images: Tensor) -> Tensor:
    """The standard deviation over the pixels of images [N, 3, H, W] in [-1, 1], mean of the channels; [N]."""
    return images.flatten(2).std(dim=-1).mean(dim=-1)


def empty(images: Sequence[Image.Image]) -> Tensor:
    """Where an image shows nothing [N], bool: its contrast is below :data:`EMPTY`."""
    arrays = [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return contrast(pixels) < EMPTY
