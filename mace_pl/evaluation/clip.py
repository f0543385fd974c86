"""A CLIP model as a judge of images: a classifier over names, and the CLIP score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve


class Judge(Protocol):
    """What says which of some names an image shows, such as a face-identity model behind a face detector."""

    names: list[str]

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities [N, C] over ``names``; a row of zeros where there is nothing to judge, such as no face."""


class ClipEncoder(torch.nn.Module):
    """The two sides of a CLIP model as unit vectors.

    Args:
        pretrained: folder of a CLIPModel with its tokenizer (in the folder or in ``tokenizer/`` beside it).
    """

    def __init__(self, pretrained: str, setting: str = "model.classifier") -> None:
        super().__init__()
        folder = resolve(pretrained)
        if not (folder / "config.json").is_file():
            raise UserError(f"{setting}={pretrained} has no config.json. Give the folder of a CLIPModel.")
        model, info = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(
                f"{setting}={pretrained} lacks weights of a CLIPModel: {missing} (in all "
                f"{len(info['missing_keys'])}). Get its files again."
            )
        self.clip: Any = model.requires_grad_(False).eval()
        words = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
        self.tokenizer = CLIPTokenizer.from_pretrained(words)
        self.mean, self.std = _normalisation(folder)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """[N, D] of N prompts."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).to(self.clip.device)
        return _unit(self.clip.get_text_features(**tokens))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, 3, H, W] as the model reads images: resized, normalised, on its device."""
        size = self.clip.config.vision_config.image_size
        arrays = [np.asarray(p.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for p in images]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        values = (values - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)
        return values.to(self.clip.device)

    @torch.no_grad()
    def image(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] of N images."""
        return _unit(self.clip.get_image_features(pixel_values=self.pixels(images)))

    def probabilities(self, image_ND: Tensor, text_CD: Tensor) -> Tensor:
        """[N, C]: softmax over the classes' texts at the model's own temperature."""
        logits: Tensor = image_ND @ text_CD.T * self.clip.logit_scale.exp()
        return logits.softmax(-1)


def clip_score(image_ND: Tensor, text_ND: Tensor) -> Tensor:
    """CLIP score 100 · max(cos, 0) of images and their own prompts, [N] (Hessel et al. 2021, w = 100)."""
    return 100 * (image_ND * text_ND).sum(-1).clamp(min=0)


class ClipClassifier(torch.nn.Module):
    """Which of some names an image shows, by a CLIP model.

    Args:
        pretrained: folder of a CLIPModel with its tokenizer (in the folder or in ``tokenizer/`` beside it).
        names: the C classes.
        template: the prompt of a class.
    """

    def __init__(self, pretrained: str, names: Sequence[str], template: str = "a photo of a {}") -> None:
        super().__init__()
        self.encoder = ClipEncoder(pretrained, "classifier")  # as fit calls it
        self.register_buffer("text", self.encoder.text([template.replace("{}", name) for name in names]))

    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Probabilities [N, C]."""
        text: Any = self.text
        return self.encoder.probabilities(self.encoder.image(images), text)


def _unit(features: Any) -> Tensor:
    """Unit vectors [N, D] out of what transformers' ``get_…_features`` returns in its different releases."""
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(pooled, dim=-1)


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel; [−1, 1] where the folder names none."""
    file = folder / "preprocessor_config.json"
    settings: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)
