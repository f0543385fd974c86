"""Judges of the tests' own, as a face-identity model would be put in."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Judge(torch.nn.Module):
    """What the judges here have in common.

    Args:
        names: what it knows.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names


class Brightness(Judge):
    """Dark, middling and bright images are cats, dogs and ships; in every third image of a call nothing is found."""

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        means = torch.tensor([float(np.asarray(image).mean()) for image in images])
        chances = torch.nn.functional.one_hot((means / 86).long().clamp(max=2), len(self.names)).float()
        chances[2::3] = 0
        return chances


class Corner(Judge):
    """Which name an image shows, by the red of its first pixel: 0 is the first name, one beyond the names unknown."""

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        reds = [image.convert("RGB").getpixel((0, 0))[0] for image in images]
        chances = torch.zeros(len(images), len(self.names))
        for row, red in zip(chances, reds, strict=True):
            if red < len(self.names):
                row[red] = 1
        return chances


class Always(Judge):
    """Every image shows one name.

    Args:
        names: what it knows.
        answer: that name.
    """

    def __init__(self, names: list[str], answer: str) -> None:
        super().__init__(names)
        self.answer = answer

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        chances = torch.zeros(len(images), len(self.names))
        chances[:, self.names.index(self.answer)] = 1
        return chances


class Sums(Judge):
    """Which name an image shows, by the sum over its pixels: any of them by chance, whatever a toy model generates.

    Args:
        names: what it knows.
        part: the sum is counted in parts of this size.
    """

    def __init__(self, names: list[str], part: int = 64) -> None:
        super().__init__(names)
        self.part = part

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        sums = torch.tensor([int(np.asarray(image, dtype=int).sum()) for image in images])
        return torch.nn.functional.one_hot(sums // self.part % len(self.names), len(self.names)).float()


class Dies(Sums):
    """As Sums, in a process that is killed where it first looks, as long as a file is not there.

    Args:
        names: what it knows.
        file: which then is there.
    """

    def __init__(self, names: list[str], file: str) -> None:
        super().__init__(names, 100)
        self.file = Path(file)

    def forward(self, images: Sequence[Image.Image]) -> torch.Tensor:
        if not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)
