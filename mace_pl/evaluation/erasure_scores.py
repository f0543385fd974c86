"""Erasure scores of single images with their bootstrap intervals: plain tensors.

Legend: W words, S seeds, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MIN_SEEDS = 5  # with fewer, resampled seeds repeat so often that the limits say nothing
SAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Groups:
    """Which of the W words, by index, are erased, preserved, synonyms of the erased, preserved but next to those."""

    erased: list[int]
    preserved: list[int]
    synonyms: list[int]
    nearest: list[int]


def resampled(seeds: int, samples: int = SAMPLES) -> Tensor:
    """[B, S] float64: the share of each seed in B samples of S seeds drawn with replacement; always the same ones."""
    picks = torch.randint(seeds, (samples, seeds), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(samples, seeds, dtype=torch.float64)
    return counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64)) / seeds


def limits(values_B: Tensor, level: float = LEVEL) -> list[float]:
    """The interval that holds the middle ``level`` of the values (percentile bootstrap)."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    bounds: list[float] = torch.quantile(values_B.double(), tails, interpolation="nearest").tolist()
    return bounds


def harmonic(parts: Sequence[Tensor]) -> Tensor:
    """N / Σ 1/v, element by element; zero where a value is zero."""
    return len(parts) / torch.stack([1 / part for part in parts]).sum(0)


def accuracies(right_BW: Tensor, groups: Groups) -> dict[str, Tensor]:
    """The scores of B tables of accuracies, [B] each; a group without words has none.

    acc_e, acc_s, acc_g, acc_n and acc_f are the means over erased, preserved, synonymous, nearest preserved and all
    other preserved words, the last where some are nearest;
    h = 3 / (1/(1 − acc_e) + 1/acc_s + 1/(1 − acc_g)), the paper's H_o, without acc_g where no synonym was generated;
    h_c = 2 / (1/(1 − acc_e) + 1/acc_s).
    """
    members = {"acc_e": groups.erased, "acc_s": groups.preserved, "acc_g": groups.synonyms, "acc_n": groups.nearest}
    members["acc_f"] = [word for word in groups.preserved if word not in groups.nearest] if groups.nearest else []
    scores = {name: right_BW[:, words].mean(1) for name, words in members.items() if words}
    if {"acc_e", "acc_s"} <= set(scores):
        pair = [1 - scores["acc_e"], scores["acc_s"]]
        scores["h"] = harmonic([*pair, *([1 - scores["acc_g"]] if "acc_g" in scores else [])])
        scores["h_c"] = harmonic(pair)
    return scores


def clip_scores(score_BW: Tensor, groups: Groups) -> dict[str, Tensor]:
    """Mean CLIP scores of erased and preserved words and H_a = preserved − erased, [B] each."""
    members = {
        "erased": groups.erased,
        "kept": groups.preserved,
        "synonyms": groups.synonyms,
        "nearest": groups.nearest,
    }
    scores = {name: score_BW[:, words].mean(1) for name, words in members.items() if words}
    if {"erased", "kept"} <= set(scores):
        scores["h_a"] = scores["kept"] - scores["erased"]
    return scores


Score = Callable[[Tensor, Groups], dict[str, Tensor]]  # values [B, W] to each score [B]


def estimated(values_WS: Tensor, groups: Groups, score: Score) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Scores of all seeds, and [B] of each score over resampled seeds.

    Args:
        values_WS: a value per word and seed, such as 1 where the classifier was right; NaN where nothing was generated.
        groups: what each word counts for.
        score: :func:`accuracies` or :func:`clip_scores`.
    """
    whole = {name: float(v) for name, v in score(values_WS.mean(1).unsqueeze(0), groups).items()}
    return whole, score(resampled(values_WS.shape[1]) @ values_WS.T, groups)


def with_intervals(before_WS: Tensor, after_WS: Tensor, groups: Groups, score: Score) -> dict[str, dict[str, Any]]:
    """``before``, ``after`` and ``change`` of each score, with 95 % intervals over seeds.

    Before and after share their resampled seeds, so that the change has the narrow interval of pairs. With fewer than
    :data:`MIN_SEEDS` seeds there are no intervals: ``intervals`` is None.
    """
    (before, b), (after, a) = (estimated(values, groups, score) for values in (before_WS, after_WS))
    change = {name: after[name] - before[name] for name in after}
    known = before_WS.shape[1] >= MIN_SEEDS
    spread = {"before": b, "after": a, "change": {name: a[name] - b[name] for name in a}}
    whole = {"before": before, "after": after, "change": change}
    return {
        when: {**values, "intervals": {n: limits(v) for n, v in spread[when].items()} if known else None}
        for when, values in whole.items()
    }


def worst_first(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> list[int]:
    """The order of preserved names by how much was lost, most first; where equal, the lower score, then the name."""
    return sorted(range(len(names)), key=lambda i: (after[i] - before[i], after[i], names[i]))
