"""A small convolutional network that names what an image shows and its style, and sees where there is nothing.

N is the number of images, C that of concepts, S that of styles. The network shares nothing with a CLIP model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mace_pl.errors import UserError
from mace_pl.evaluation.emptiness import contrast
from mace_pl.files.artifacts import read_tensors
from mace_pl.files.paths import resolve

KIND = "judge"


class Residual(nn.Module):
    """Two convolutions beside the identity; halves the side where the channels change.

    Args:
        before: channels of the input.
        after: channels of the output.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.beside = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[N, before, H, W] to [N, after, H / stride, W / stride]."""
        made = F.relu(self.first_norm(self.first(features)))
        made = self.second_norm(self.second(made))
        return F.relu(made + self.beside(features))


class JudgeNetwork(nn.Module):
    """Logits of concepts and of styles.

    Args:
        channels: channels per resolution; the side is halved before each but the first.
        concepts: C.
        styles: S.
    """

    def __init__(self, channels: Sequence[int], concepts: int, styles: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        stages = zip(channels, channels[1:], strict=False)
        self.blocks = nn.Sequential(*(nn.Sequential(Residual(a, b), Residual(b, b)) for a, b in stages))
        self.concepts = nn.Linear(channels[-1], concepts)
        self.styles = nn.Linear(channels[-1], styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [-1, 1] to logits [N, C] and [N, S]."""
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        return self.concepts(features), self.styles(features)


class ConvolutionalJudge(nn.Module):
    """Which concept, or which style, an image shows, by the network that ``configs/train/emoji_judge.yaml`` trains.

    Args:
        weights: the ``judge.safetensors`` of that training.
        of: whether ``names``, and what a call gives, are concepts or styles.
    """

    def __init__(self, weights: str, of: Literal["concepts", "styles"] = "concepts") -> None:
        super().__init__()
        tensors, said = read_tensors(resolve(weights), KIND, "judge.weights")
        self.concepts, self.styles = list(said["concepts"]), list(said["styles"])
        self.names = self.concepts if of == "concepts" else self.styles
        self.of = of
        self.threshold, self.resolution = float(said["threshold"]), int(said["resolution"])
        self.network = JudgeNetwork(said["channels"], len(self.concepts), len(self.styles))
        expected = {name: t.dtype for name, t in self.network.state_dict().items() if t.is_floating_point()}
        if expected.keys() != tensors.keys():
            raise UserError(f"judge.weights: {weights} lacks weights of its network. Train the judge again.")
        self.network.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
        self.requires_grad_(False).eval()

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, 3, H, W] in [-1, 1] at the network's resolution, on its device."""
        size = (self.resolution, self.resolution)
        arrays = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in images]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return values.to(self.network.stem.weight)

    @torch.no_grad()
    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities [N, C] or [N, S] over ``names``; a row of zeros where an image is empty."""
        pixels = self.pixels(images)
        concepts, styles = self.network(pixels)
        chances: Tensor = (concepts if self.of == "concepts" else styles).softmax(dim=-1)
        return chances * ~self.faint(pixels)[:, None]

    def empty(self, images: Sequence[Image.Image]) -> Tensor:
        """Where an image shows nothing [N], bool: its contrast is below half of the faintest image of training."""
        return self.faint(self.pixels(images))

    def faint(self, pixels: Tensor) -> Tensor:
        """The same of pixels [N, 3, H, W]."""
        return contrast(pixels) < self.threshold
