"""A judge of the tests' own, as a face-identity model would be put in: it tells pictures by their brightness."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


class Brightness(torch.nn.Module):
    """Dark, middling and bright pictures are cats, dogs and ships; in every third picture of a call nothing is found.

    Args:
        names: what it knows.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        means = torch.tensor([float(np.asarray(picture).mean()) for picture in pictures])
        chances = torch.nn.functional.one_hot((means / 86).long().clamp(max=2), len(self.names)).float()
        chances[2::3] = 0
        return chances
