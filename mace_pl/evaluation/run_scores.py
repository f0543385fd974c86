"""From tables of single images to the scores of a run by one judge: rates, where images went, rows per concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mace_pl.evaluation.erasure_scores import (
    MIN_SEEDS,
    Groups,
    accuracies,
    clip_scores,
    estimated,
    limits,
    resampled,
    with_intervals,
    worst_first,
)
from mace_pl.evaluation.shares import failures, shares, unknown_anchors
from mace_pl.evaluation.words import Words

Tables = Mapping[str, Tensor]  # by figure, [W, P, S]: words, prompts of each, seeds; [W, P, S, J] of several judges


def of_judge(tables: Tables, judge: int) -> dict[str, Tensor]:
    """The tables with what one of the judges saw."""
    own = ("seen", "undetected", "probability")
    return {kind: table[..., judge] if kind in own else table for kind, table in tables.items()}


def by_seed(tables: Tables, words: Words) -> dict[str, Tensor]:
    """``top1``, ``probability`` and ``clip_score`` [W, S], means over the prompts; NaN where nothing was generated."""
    right = words.right()
    gap = torch.where(tables["generated"] > 0, 0.0, float("nan")).double()
    values = {
        "top1": is_right(tables["seen"], right).double(),
        "probability": tables["probability"],
        "clip_score": tables["clip_score"],
    }
    return {kind: (value + gap).mean(1) for kind, value in values.items()}


def is_right(seen: Tensor, right_WC: Tensor) -> Tensor:
    """[W, ...] bool: whether the class that is seen of each word, −1 for none, is right."""
    words = torch.arange(len(seen)).view(-1, *[1] * (seen.ndim - 1))
    return right_WC[words, seen.clamp(min=0)] & (seen >= 0)


def by_word(values_WS: Tensor, words: Words) -> dict[str, float]:
    """The mean of each word that was generated."""
    means = dict(zip(words.all, values_WS.mean(1).tolist(), strict=True))
    return {word: mean for word, mean in means.items() if mean == mean}


def original_results(tables: Tables, words: Words) -> dict[str, Any]:
    """The scores of the original alone, where every name is preserved."""
    groups, results = words.groups([], []), {}
    for kind, values in by_seed(tables, words).items():
        score = clip_scores if kind == "clip_score" else accuracies
        whole, spread = estimated(values, groups, score)
        known = values.shape[1] >= MIN_SEEDS
        intervals = {name: limits(v) for name, v in spread.items()} if known else None
        results[kind] = {**whole, "intervals": intervals, "by_word": by_word(values, words)}
    return results


def run_results(
    before: Tables, after: Tables, words: Words, anchors: Mapping[str, str | None], near: Sequence[str]
) -> dict[str, Any]:
    """``before``, ``after`` and ``change`` by kind of score, and a row per concept.

    Args:
        before: tables of the original.
        after: tables of the edit.
        words: what was generated.
        anchors: what the run erases, and what it puts in place of each, where that is known.
        near: preserved names next to the targets.
    """
    groups = words.groups(list(anchors), near)
    first, second = by_seed(before, words), by_seed(after, words)
    results: dict[str, Any] = {"before": {}, "after": {}, "change": {}}
    for kind in first:
        score = clip_scores if kind == "clip_score" else accuracies
        for when, values in with_intervals(first[kind], second[kind], groups, score).items():
            results[when][kind] = values
        results["before"][kind]["by_word"] = by_word(first[kind], words)
        results["after"][kind]["by_word"] = by_word(second[kind], words)
    for when, tables in (("before", before), ("after", after)):
        for kind, places in {"shares": groups.erased, "synonym_shares": groups.synonyms}.items():
            results[when][kind] = shares(tables, words, places, anchors)
    results["fails"] = failures(results["after"]["shares"], results["after"]["synonym_shares"])
    results["concepts"] = concept_rows(first, second, after, words, groups)
    results["missing"] = gaps(before, after, words, anchors)
    return results


def gaps(before: Tables, after: Tables, words: Words, anchors: Mapping[str, str | None]) -> list[str]:
    """Sentences on what is not scored, or counts otherwise than a reader may think."""
    said = [
        f"{target!r} is not in data.names: its images are not scored" for target in anchors if target not in words.names
    ]
    for when, tables in (("before", before), ("after", after)):
        undetected = int(tables["undetected"].sum())
        if undetected:
            generated = int(tables["generated"].sum())
            said.append(f"{undetected} of {generated} images {when} show nothing to judge and count as not seen")
    if before["seen"].shape[2] < MIN_SEEDS:
        said.append(f"no intervals: they need data.seeds of {MIN_SEEDS} or more")
    return said + unknown_anchors(words, anchors)


def concept_rows(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], after: Tables, words: Words, groups: Groups
) -> list[dict[str, Any]]:
    """A row per word: preserved names first, the most damaged on top, then what is erased and its synonyms."""
    old, new = first["top1"].mean(1), second["top1"].mean(1)
    preserved = [groups.preserved[i] for i in worst_first(*_of(groups.preserved, words, old, new))]
    roles = {"kept": preserved, "erased": groups.erased, "synonym": groups.synonyms}
    seeds = first["top1"].shape[1]
    weights = resampled(seeds)
    rows = []
    for role, members in roles.items():
        for i in members:
            spread = weights @ (second["top1"][i] - first["top1"][i])
            row = {"word": words.all[i], "role": role, "nearest": i in groups.nearest}
            row |= {"before": float(old[i]), "after": float(new[i]), "change": float(new[i] - old[i])}
            row["interval"] = limits(spread) if seeds >= MIN_SEEDS else None
            row |= {kind: float(second[kind][i].mean()) for kind in ("probability", "clip_score")}
            for kind in ("undetected", "empty"):
                row[kind] = float(after[kind][i].double().mean())
            rows.append(row | {"seen_as": _seen_as(after["seen"][i], words.all[i], words)})
    return rows


def _of(members: Sequence[int], words: Words, *values: Tensor) -> tuple[list[Any], ...]:
    """The names and the values of some words."""
    return [words.all[i] for i in members], *[[float(value[i]) for i in members] for value in values]


def _seen_as(seen: Tensor, word: str, words: Words) -> dict[str, float]:
    """The classes that were seen in a word's images in place of its own, with their shares, most frequent first."""
    counts = torch.bincount(seen[seen >= 0], minlength=len(words.classes))
    found = {name: float(n) / seen.numel() for name, n in zip(words.classes, counts.tolist(), strict=True) if n}
    for own in words.same(word):
        found.pop(words.classes[own], None)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
