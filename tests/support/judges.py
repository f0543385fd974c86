"""A judge of the tests' own, as a face-identity model would be put in: it tells images by their brightness."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


class Brightness(torch.nn.Module):
    """Dark, middling and bright images are cats, dogs and ships; in every third image of a call nothing is found.

    Args:
        names: what it knows.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        means = torch.tensor([float(np.asarray(image).mean()) for image in images])
        chances = torch.nn.functional.one_hot((means / 86).long().clamp(max=2), len(self.names)).float()
        chances[2::3] = 0
        return chances
