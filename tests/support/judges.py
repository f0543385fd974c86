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


class Corner(torch.nn.Module):
    """Which name an image shows by the red of its first pixel, 0 for the first name; one beyond the names is unknown.

    Args:
        names: what it knows.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        reds = [image.convert("RGB").getpixel((0, 0))[0] for image in images]
        chances = torch.zeros(len(images), len(self.names))
        for row, red in zip(chances, reds, strict=True):
            if red < len(self.names):
                row[red] = 1
        return chances


class Always(torch.nn.Module):
    """Every image shows one name.

    Args:
        names: what it knows.
        answer: that name.
    """

    def __init__(self, names: list[str], answer: str) -> None:
        super().__init__()
        self.names, self.answer = names, answer

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        chances = torch.zeros(len(images), len(self.names))
        chances[:, self.names.index(self.answer)] = 1
        return chances
