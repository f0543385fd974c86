"""Every tolerance of the tests: what it allows, why rounding may do that much, and how much of it was ever used.

``seen`` is the largest share of a tolerance that was used over 20 seeds of the toy models and of the tests, those of
several ranks excepted, which had fewer (``python tests/measure_tolerances.py``, x86-64 with AVX-512, float32 on one
thread). It stays below a third, so that another processor, another release of torch or another seed does not turn a
test red. Equal bits need no tolerance:
``torch.equal``, or ``assert_close`` with zeros.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| may be ``absolute`` + ``relative`` x |expected|.

    ``seen`` is the largest share of that over the measured seeds.
    """

    name: str
    seen: float
    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Floor:
    """An effect must be at least ``least``; ``seen`` is ``least`` over the smallest effect of the measured seeds."""

    name: str
    seen: float
    least: float


# --- float64 ---------------------------------------------------------------------------------------------------------

# sums of some thousand products in another order: each addition rounds by 1.1e-16 of the sum so far
FLOAT64_SUMS = Tolerance("FLOAT64_SUMS", 0.03, relative=1e-12, absolute=1e-11)
# solves of systems of 12 unknowns whose condition is below 1e4, twice one after the other, against an inverse; and
# decompositions of matrices of 32 x 32
FLOAT64_SOLVES = Tolerance("FLOAT64_SOLVES", 0.011, relative=1e-12, absolute=1e-12)
# an identity term of 1e14 leaves the other terms a part of about 1e3 / 1e14
FLOAT64_STIFF = Tolerance("FLOAT64_STIFF", 0.008, absolute=1e-10)
# by symmetric square roots, which lose half of the digits where an eigenvalue is near zero
FLOAT64_ROOTS = Tolerance("FLOAT64_ROOTS", 0.0001, relative=1e-7, absolute=1e-7)

# a closed form for all layers against loops per token and layer: systems of 12 unknowns of a condition below 1e5, up to
# four one after the other; 1e-9 of a value
CLOSED_FORMS = Tolerance("CLOSED_FORMS", 0.03, relative=1e-9, absolute=1e-9)
# targets that UCE maps to their anchors with λ = 1e-9: λ over the smallest eigenvalue of their Gram matrix is left
LANDED = Tolerance("LANDED", 0.01, absolute=1e-6)

# --- float32: each operation rounds by 6e-8 --------------------------------------------------------------------------

# a handful of operations
BY_HAND = Tolerance("BY_HAND", 0.011, relative=1e-5, absolute=1e-6)
# a pass through the few layers of a toy network, in other batches, by other kernels or from another process
FLOAT32_PASS = Tolerance("FLOAT32_PASS", 0.09, relative=1e-4, absolute=1e-5)
# sums in float64 of embeddings that were made in other batches; as the norm of the difference, or entry by entry,
# where entries of some hundred cancel
FLOAT32_SUMS = Tolerance("FLOAT32_SUMS", 0.03, relative=1e-6, absolute=1e-4)
# the largest relative difference of a matrix of 32 x 32 after a solve in float32, whose condition is about 100
FLOAT32_MATRICES = Tolerance("FLOAT32_MATRICES", 0.25, absolute=1e-4)
# how far a matrix of sums in float32 is from symmetric
SYMMETRIC = Tolerance("SYMMETRIC", 0.05, absolute=1e-5)
# the same change of weights, calculated twice and stored in float32: values below 8 round by 2.4e-7
FLOAT32_EDIT = Tolerance("FLOAT32_EDIT", 0.24, absolute=2e-6)
# a pass through a toy UNet with weights of such an edit, merged on one side and beside the layer on the other
EDITED_PASS = Tolerance("EDITED_PASS", 0.08, absolute=2e-5)
# an image in [0, 1] of a toy pipeline from equal weights by the float32 kernels of other versions of diffusers
OTHER_VERSIONS = Tolerance("OTHER_VERSIONS", 0.0, absolute=1e-3)
# the same of weights that were rounded to 11 bits, or to 8
HALF_IMAGE = Tolerance("HALF_IMAGE", 0.08, absolute=0.01)
# rounding to 8 bits is 8 times as coarse
BFLOAT16_IMAGE = Tolerance("BFLOAT16_IMAGE", 0.08, absolute=0.08)
# the attention loss of a toy UNet, whose squares are summed in another order, in float64 on one side
ATTENTION_SUMS = Tolerance("ATTENTION_SUMS", 0.01, relative=1e-4)
# gradients of a toy UNet, recomputed or by compiled kernels
FLOAT32_GRADIENTS = Tolerance("FLOAT32_GRADIENTS", 0.03, relative=1e-4, absolute=1e-7)
# the losses of a toy run of a few steps in other batches: rounding of one step is in the weights of the next
RUN_LOSSES = Tolerance("RUN_LOSSES", 0.002, relative=1e-4)
# the weights after a toy run in other batches, groups of concepts or ranks, or with recomputed activations: AdamW
# divides a small gradient by its own size and so its rounding too, and a step is up to 0.01. Of 20 seeds 18 stay below
# 3e-6, one has 5e-5: an entry of a factor whose gradient is rounding alone
RUN_WEIGHTS = Tolerance("RUN_WEIGHTS", 0.24, absolute=2e-4)
# the same of the factors of the LoRAs, before their product makes the differences small
RUN_FACTORS = Tolerance("RUN_FACTORS", 0.26, absolute=4e-4)
# the weights after a run whose images were generated in other batches: a grey level here and there, a mask by a pixel
REGENERATED = Tolerance("REGENERATED", 0.12, absolute=1e-4)

# --- narrower types --------------------------------------------------------------------------------------------------

# bfloat16 keeps 8 bits, 4e-3 of a value at most; some ten operations one after the other in two layers, then products
# of two such values, which double it; norm of the difference
BFLOAT16_SUMS = Tolerance("BFLOAT16_SUMS", 0.28, relative=5e-2)
# losses of a run whose products round to 8 bits (bfloat16) or 11 (float16): means over many pixels, errors cancel
MIXED_LOSSES = Tolerance("MIXED_LOSSES", 0.1, relative=1e-3)
# what a run learns in bfloat16: AdamW's first step is the sign of a gradient times the step size; where a gradient is
# smaller than its rounding, 4e-3 of the terms of its sum, the sign is a toss, and one entry in a thousand that goes the
# other way makes 2 / sqrt(1000) = 6 %. Processors sum in other orders: 3.2 % was seen with AMX where AVX-512 had 1.5 %
BFLOAT16_RUN = Tolerance("BFLOAT16_RUN", 0.18, relative=0.2)
# the same in float16, which rounds to an eighth of that
FLOAT16_RUN = Tolerance("FLOAT16_RUN", 0.16, relative=0.03)
# weights below 1 that were rounded to float16, 5e-4 of a value, on two ways
FLOAT16_WEIGHTS = Tolerance("FLOAT16_WEIGHTS", 0.0, absolute=2e-3)
# a pass through a toy UNet whose edit was stored in float16, 5e-4 of each factor of a product
FLOAT16_PASS = Tolerance("FLOAT16_PASS", 0.25, absolute=4e-2)
# errors of a network whose weights were rounded to float16, or averaged over the last steps
FLOAT16_ERROR = Tolerance("FLOAT16_ERROR", 0.008, relative=0.01)

# --- images and masks ----------------------------------------------------------------------------------------------

# the share of values that fall on the other side of a grey level: differences are far below one level, so no value
# moves by two levels, and one in as many values moves as the difference is parts of a level
GREY_LEVELS = Tolerance("GREY_LEVELS", 0.07, absolute=0.02)
# the share of pixels of a mask that fall on the other side of its threshold
MASK_PIXELS = Tolerance("MASK_PIXELS", 0.03, absolute=0.02)
# scores of images that differ by a grey level here and there
SCORES = Tolerance("SCORES", 0.03, relative=0.01, absolute=1e-4)

# the same image and prompt, generated in another batch: a grey level here and there, which moves a chance by 1e-4
SAME_SCORE = Tolerance("SAME_SCORE", 0.12, relative=1e-3)
# distances between small sets of such images: squares of small differences
DISTANCES = Tolerance("DISTANCES", 0.0, relative=0.05, absolute=1e-4)
# a grey level of a blend: rounding to a level, of the mask and of the image
BLENDED = Tolerance("BLENDED", 0.25, absolute=2)
# an affine warp of a face in 1/32 pixels (OpenCV's own steps) on float32
ALIGNED_FACES = Tolerance("ALIGNED_FACES", 0.0, relative=1e-3, absolute=1e-3)

# --- counts and estimates --------------------------------------------------------------------------------------------

# a quantile of 20,000 samples of a count: one count up or down
ONE_STEP = Tolerance("ONE_STEP", 0.0001, absolute=1)
# deciles of two samples of 16,384 uniform values in [−1, 1]: the median of one is off by 1 / sqrt(16,384) = 0.008
DECILES = Tolerance("DECILES", 0.32, absolute=0.1)
# how often an interval of 95 % covers the truth: percentiles of a hundred zeros and ones cover 93 %, always the same
# by the fixed samples; an interval of 90 % would cover 88 %
COVERAGE = Tolerance("COVERAGE", 0.32, absolute=0.06)
# the mean of a thousand samples of a mean of 24 values between 0 and 1: 0.3 / sqrt(24 x 1000) = 0.002
BOOTSTRAP_MEAN = Tolerance("BOOTSTRAP_MEAN", 0.06, absolute=0.02)
# a harmonic mean of published numbers, which are rounded to four digits themselves
PUBLISHED = Tolerance("PUBLISHED", 0.29, absolute=5e-4)
# areas in pixels: a border of a pixel of a small mask
PIECES = Tolerance("PIECES", 0.0, relative=0.1)
# a mask above the median of three images together: ties alone
HALF_MARKED = Tolerance("HALF_MARKED", 0.003, absolute=0.2)
# a standard deviation of 6,144 latents with heavy tails: the sample by which they were scaled is off by up to 4 %
SCALED_LATENTS = Tolerance("SCALED_LATENTS", 0.19, absolute=0.12)
# three steps at a learning rate of 1e-3
FINE_TUNED = Tolerance("FINE_TUNED", 0.07, absolute=0.1)
# what is left of a change of directions that a term of 1e5 preserves, where other terms are below a hundred
PRESERVED = Tolerance("PRESERVED", 0.04, absolute=0.1)
# the share of 32 images that look more like another one after an autoencoder of random weights and noise
STILL_THE_IMAGE = Tolerance("STILL_THE_IMAGE", 0.0, absolute=0.3)

# --- effects ---------------------------------------------------------------------------------------------------------

# an edit, or another way to train, moves a weight by far more than the tolerances above
MOVED = Floor("MOVED", 0.23, least=1e-4)
# other images: some value differs by more than rounding could
OTHER_IMAGE = Floor("OTHER_IMAGE", 0.15, least=3)
# what a toy run does to a weight, and two concepts differently: five times RUN_WEIGHTS; 40 times was the least seen
RUN_MOVED = Floor("RUN_MOVED", 0.12, least=1e-3)
# the same of losses from step to step: fifty times RUN_LOSSES
LOSS_CHANGES = Floor("LOSS_CHANGES", 0.18, least=0.005)
# the norm of all products of a toy run
PRODUCTS = Floor("PRODUCTS", 0.13, least=0.1)
# what bfloat16 in place of float32 does to sums: a hundred times the rounding of float32
NARROWER = Floor("NARROWER", 0.04, least=1e-4)
# noise added to the latents of images, as 1 - mean correlation
SOFTENED = Floor("SOFTENED", 0.007, least=1e-3)
# what is lost at a low rank, far above the rounding of a decomposition
TRUNCATED = Floor("TRUNCATED", 0.02, least=1e-3)
# chances of other images: far more than SAME_SCORE
OTHER_SCORE = Floor("OTHER_SCORE", 0.28, least=4e-3)
# two painters' manners of a sprite: a mean difference of a grey level and a half, far above rounding to one
MANNER = Floor("MANNER", 0.2, least=0.006)
# the part of a loss that 24 more steps of two free tokens take away
EXPLAINED = Floor("EXPLAINED", 0.002, least=1e-5)
# the part of the error that some ten steps of training take away; the error itself is measured on the same images
# and noises before and after, so that less than this would be no chance either
LEARNT = Floor("LEARNT", 0.28, least=0.04)


def close(actual: Any, expected: Any, tolerance: Tolerance) -> None:
    """Every number of tensors, arrays, numbers, or sequences and mappings of them."""
    pairs = list(_pairs(actual, expected))
    shares = []
    for one, other in pairs:
        difference, size = (one.double() - other.double()).abs(), other.double().abs()
        shares.append(float((difference / (tolerance.absolute + tolerance.relative * size)).max()) if len(size) else 0)
    _record(tolerance, max(shares, default=0.0))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance.relative, atol=tolerance.absolute)


def near(actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """The norm of the difference, as a part of the norm of what is expected."""
    assert actual.shape == expected.shape
    part = float((actual.double() - expected.double()).norm() / expected.double().norm())
    _record(tolerance, part / tolerance.relative)
    assert part <= tolerance.relative, f"{part} of the norm differs, {tolerance}"


def same_images(found: Iterable[Any], expected: Iterable[Any]) -> None:
    """No value differs by more than one grey level, and few by one."""
    first, second = (np.stack([np.asarray(image, dtype=int) for image in side]) for side in (found, expected))
    assert first.shape == second.shape
    difference = np.abs(first - second)
    assert difference.max() <= 1, f"{difference.max()} grey levels"
    below(float(difference.mean()), GREY_LEVELS)


def same_masks(found: Tensor, expected: Tensor) -> None:
    """Few pixels differ."""
    assert found.shape == expected.shape
    below(float((found != expected).float().mean()), MASK_PIXELS)


def below(value: float, tolerance: Tolerance) -> None:
    """A part that differs is at most what is allowed."""
    _record(tolerance, float(value) / tolerance.absolute)
    assert value <= tolerance.absolute, f"{value}, {tolerance}"


def above(value: float | Tensor, floor: Floor) -> None:
    """An effect is there."""
    _record(floor, floor.least / float(value) if value > 0 else float("inf"))
    assert value >= floor.least, f"{value}, {floor}"


def _pairs(actual: Any, expected: Any) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            yield from _pairs(actual[name], value)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            yield from _pairs(one, other)
    elif isinstance(expected, Tensor):
        assert isinstance(actual, Tensor) and actual.dtype == expected.dtype and actual.shape == expected.shape
        yield actual.detach().flatten(), expected.detach().flatten()
    else:
        yield torch.tensor([float(actual)], dtype=torch.float64), torch.tensor([float(expected)], dtype=torch.float64)


def _record(limit: Tolerance | Floor, share: float) -> None:
    """One line for ``measure_tolerances.py``."""
    file = os.environ.get("MACE_PL_RECORD")
    if file is not None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" (", 1)[0]
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"test": test, "name": limit.name, "share": share}) + "\n")
