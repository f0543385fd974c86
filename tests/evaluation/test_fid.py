"""FID and KID against independent implementations, the distance and the CLIP score by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.seeds import seeded
from support.tolerances import BY_HAND, FLOAT32_PASS, FLOAT64_ROOTS, MOVED, above, close

from mace_pl.evaluation.clip import clip_score
from mace_pl.evaluation.fid import ClipFeatures, compare, perceptual_distance


def samples(n: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.float64) + shift


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½) by symmetric square roots."""

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mixed = root(root(first) @ second @ root(first))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * mixed))


def test_fid_equals_the_formula() -> None:
    a, b = samples(60, 0, 0), samples(40, 0.5, 1) * 2
    close(compare(a, b, subset=30)["fid"], frechet(a.numpy(), b.numpy()), FLOAT64_ROOTS)
    close(compare(a, a, subset=30)["fid"], 0, FLOAT64_ROOTS)


def test_kid_of_all_images_equals_the_unbiased_estimate() -> None:
    a, b = samples(30, 0, 0), samples(30, 0.5, 1)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    x, y, n = a.numpy(), b.numpy(), 30
    own = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (n * (n - 1)) for z in (x, y)]
    expected = own[0] + own[1] - 2 * kernel(x, y).mean()
    close(compare(a, b, subset=30)["kid"], expected, FLOAT64_ROOTS)  # a subset of all is all of them


def test_kid_repeats_and_leaves_the_global_stream_alone() -> None:
    a, b = samples(40, 0, 0), samples(40, 0.5, 1)
    state = torch.random.get_rng_state()
    first = compare(a, b, subset=10)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(seeded(5))
    assert compare(a, b, subset=10) == first


def test_too_few_images_are_a_stated_gap() -> None:
    found = compare(samples(1, 0, 0), samples(9, 0, 1), subset=5)
    assert found["fid"] is None and found["kid"] is None
    assert "needs 2 images on either side, there are 1 and 9" in found["missing"]["fid"]
    assert "needs 5 images" in found["missing"]["kid"]


def test_distance_by_hand() -> None:
    first = [torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 1.0]]])]
    second = [torch.tensor([[[0.0, 5.0], [0.0, 2.0]]]), torch.tensor([[[-2.0, -2.0]]])]
    # layer one: positions at right angles (2) and parallel (0), mean 1; layer two: opposite, 4
    close(perceptual_distance(first, second), torch.tensor([2.5]), BY_HAND)
    close(perceptual_distance(first, first), torch.zeros(1), BY_HAND)


def test_clip_score_by_hand() -> None:
    image = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    text = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    close(clip_score(image, text), torch.tensor([80.0, 0.0]), BY_HAND)


def test_features_of_the_toy_clip(toy_clip: Path) -> None:
    extractor = ClipFeatures(str(toy_clip))
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "red")]
    features, layers = extractor(images)
    assert features.shape == (3, extractor.num_features) == (3, 8)
    assert [layer.shape for layer in layers] == [(3, 5, 16)]  # one block; four patches and the class token
    distance = perceptual_distance([layer[:1] for layer in layers], [layer[1:2] for layer in layers])
    above(distance, MOVED)
    close(features[0], features[2], FLOAT32_PASS)
    clip = extractor.encoder.clip
    own = clip.get_image_features(pixel_values=extractor.encoder.pixels(images))
    own = own if isinstance(own, torch.Tensor) else own.pooler_output
    close(features, own, FLOAT32_PASS)
