"""How far images are from others: FID, KID and a perceptual distance in the space of an exchangeable extractor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance  # torchmetrics.image has both with torch-fidelity only
from torchmetrics.image.kid import KernelInceptionDistance

from mace_pl.evaluation.clip import ClipEncoder


class Extractor(Protocol):
    """What turns images into features: this project's on CLIP, or any other with the same two members."""

    num_features: int

    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[Tensor]]:
        """Features [N, D] for FID and KID, and of each layer [N, positions, channels] for the distance."""


class ClipFeatures(nn.Module):
    """Features by the image side of a CLIP model, so that nothing is downloaded.

    Figures by it compare with each other only: published FID and KID use Inception.

    Args:
        pretrained: folder of the CLIPModel.
    """

    def __init__(self, pretrained: str = "checkpoints/emoji/clip") -> None:
        super().__init__()
        self.encoder = ClipEncoder(pretrained)
        self.num_features = int(self.encoder.clip.config.projection_dim)

    @torch.no_grad()
    def forward(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[Tensor]]:
        """The embedding [N, D], and the output of each transformer block [N, positions, channels]."""
        clip = self.encoder.clip
        out = clip.vision_model(pixel_values=self.encoder.pixels(images), output_hidden_states=True)
        return clip.visual_projection(out.pooler_output), list(out.hidden_states[1:])


def perceptual_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """[N]: mean over layers and positions of ‖â − b̂‖², with channels scaled to unit length.

    The form of LPIPS (Zhang et al. 2018) with all its learned weights one: 0 for equal images, at most 4.

    Args:
        first: features of N images by layer, [N, positions, channels] each.
        second: those of the N images that they are compared with.
    """
    unit = torch.nn.functional.normalize
    layers = [(unit(a, dim=-1) - unit(b, dim=-1)).square().sum(-1).mean(-1) for a, b in zip(first, second, strict=True)]
    return torch.stack(layers).mean(0)


class _Given(nn.Module):
    """Hands the features that it is given to torchmetrics, which would extract them once for every metric."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features


def compare(reference_ND: Tensor, others_MD: Tensor, subset: int = 50) -> dict[str, Any]:
    """FID, and KID over 100 subsets, of M images against N reference ones.

    Args:
        reference_ND: features of the reference images.
        others_MD: features of the images that are compared with them.
        subset: images in each of KID's subsets.

    Returns:
        ``fid`` and ``kid``; None where there are too few images, with the reason in ``missing``.
    """
    result: dict[str, Any] = {"fid": None, "kid": None, "missing": {}}
    counts = f"there are {len(reference_ND)} and {len(others_MD)}"
    fewest = min(len(reference_ND), len(others_MD))
    width = reference_ND.shape[1]
    if fewest >= 2:
        fid = FrechetInceptionDistance(feature=_Given(width), sync_on_compute=False)
        result["fid"] = _fed(fid, reference_ND, others_MD)
    else:
        result["missing"]["fid"] = f"needs 2 images on either side, {counts}"
    if fewest >= subset:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # it keeps all features
            torch.manual_seed(0)  # it draws its subsets from the global stream
            kid = KernelInceptionDistance(feature=_Given(width), subset_size=subset, sync_on_compute=False)
            result["kid"] = _fed(kid, reference_ND, others_MD)
    else:
        result["missing"]["kid"] = f"needs {subset} images on either side, {counts}"
    return result


def _fed(metric: FrechetInceptionDistance | KernelInceptionDistance, reference_ND: Tensor, others_MD: Tensor) -> float:
    """The value of a metric of torchmetrics over two sets of features, in float64; KID's mean over subsets."""
    metric.update(reference_ND.double(), real=True)
    metric.update(others_MD.double(), real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)
