"""Scores of an erasure, and a CLIP model as a classifier over names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from mace_pl.paths import resolve


def harmonic_mean(values: Sequence[float]) -> float:
    """N / Σ 1/v, zero where a value is zero.

    H_o of the paper is that of (1 − Acc_e, Acc_s, 1 − Acc_g), H_c that of (1 − Acc_e, Acc_s).

    Raises:
        ValueError: no value, or one outside [0, 1].
    """
    if not values or any(not 0 <= v <= 1 for v in values):
        raise ValueError(f"values={list(values)} must be accuracies between 0 and 1, at least one.")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / v for v in values)


class ClipClassifier(torch.nn.Module):
    """Which of some names a picture shows, by a CLIP model.

    Args:
        pretrained: folder of a CLIPModel with its tokenizer (in the folder or in ``tokenizer/`` beside it).
        names: the C classes.
        template: the prompt of a class.
    """

    def __init__(self, pretrained: str, names: Sequence[str], template: str = "a photo of a {}") -> None:
        super().__init__()
        folder = resolve(pretrained)
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.classifier={pretrained} has no config.json. Give the folder of a CLIPModel.")
        self.clip: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
        words = folder if (folder / "tokenizer_config.json").is_file() else folder.parent / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(words)
        prompts = [template.replace("{}", name) for name in names]
        with torch.no_grad():
            tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
            text = self.clip.get_text_features(**tokens)
        text = text if isinstance(text, Tensor) else text.pooler_output
        self.register_buffer("text", torch.nn.functional.normalize(text, dim=-1))
        self.mean, self.std = _normalisation(folder)

    @torch.no_grad()
    def forward(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Probabilities [N, C]."""
        size = self.clip.config.vision_config.image_size
        arrays = [np.asarray(p.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for p in pictures]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)
        text: Any = self.text
        image = self.clip.get_image_features(pixel_values=pixels.to(text.device))
        image = image if isinstance(image, Tensor) else image.pooler_output
        logits: Tensor = torch.nn.functional.normalize(image, dim=-1) @ text.T * self.clip.logit_scale.exp()
        return logits.softmax(-1)


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel; [−1, 1] where the folder names none."""
    file = folder / "preprocessor_config.json"
    found: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found.get("image_mean", [0.5] * 3), found.get("image_std", [0.5] * 3)
