"""From tables of single images to the scores of a run: which word counts for what, rows per concept, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from mace_pl.models.protocols import Tokenizer

Tables = Mapping[str, Tensor]  # by figure, [W, P, S]: words, prompts of each, seeds


@dataclass(frozen=True)
class Words:
    """The words that images are generated of: C names, which are the classes, then synonyms of some of them."""

    names: list[str]
    synonyms: dict[str, list[str]]

    @property
    def all(self) -> list[str]:
        """Names, then synonyms."""
        return self.names + [word for words in self.synonyms.values() for word in words]

    @property
    def meaning(self) -> dict[str, str]:
        """The name that each word means."""
        return {n: n for n in self.names} | {w: t for t, words in self.synonyms.items() for w in words}

    def groups(self, targets: Sequence[str], nearest: Sequence[str]) -> Groups:
        """Indices of erased and preserved names, of the targets' synonyms, and of the nearest preserved names."""
        index = {word: i for i, word in enumerate(self.all)}
        return Groups(
            [index[name] for name in self.names if name in targets],
            [index[name] for name in self.names if name not in targets],
            [index[word] for target in targets for word in self.synonyms.get(target, [])],
            [index[name] for name in nearest],
        )


def by_seed(tables: Tables, words: Words) -> dict[str, Tensor]:
    """``top1``, ``probability`` and ``clip_score`` [W, S], means over the prompts; NaN where nothing was generated."""
    truth = torch.tensor([words.names.index(words.meaning[word]) for word in words.all])
    gap = torch.where(tables["generated"] > 0, 0.0, float("nan")).double()
    values = {
        "top1": (tables["seen"] == truth.view(-1, 1, 1)).double(),
        "probability": tables["probability"],
        "clip_score": tables["clip_score"],
    }
    return {kind: (value + gap).mean(1) for kind, value in values.items()}


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


def run_results(before: Tables, after: Tables, words: Words, targets: Sequence[str], near: Sequence[str]) -> Any:
    """``before``, ``after`` and ``change`` by kind of score, and a row per concept.

    Args:
        before: tables of the original.
        after: tables of the edit.
        words: what was generated.
        targets: what the run erases.
        near: preserved names next to the targets.
    """
    groups = words.groups(targets, near)
    first, second = by_seed(before, words), by_seed(after, words)
    results: dict[str, Any] = {"before": {}, "after": {}, "change": {}}
    for kind in first:
        score = clip_scores if kind == "clip_score" else accuracies
        for when, values in with_intervals(first[kind], second[kind], groups, score).items():
            results[when][kind] = values
        results["before"][kind]["by_word"] = by_word(first[kind], words)
        results["after"][kind]["by_word"] = by_word(second[kind], words)
    results["concepts"] = concept_rows(first, second, after, words, groups)
    missing = [target for target in targets if target not in words.names]
    results["missing"] = [f"{target!r} is not in data.names: its images are not scored" for target in missing]
    for when, tables in (("before", before), ("after", after)):
        undetected = int(tables["undetected"].sum())
        if undetected:
            generated = int(tables["generated"].sum())
            results["missing"].append(
                f"{undetected} of {generated} images {when} show nothing to judge and count as not seen"
            )
    if next(iter(first.values())).shape[1] < MIN_SEEDS:
        results["missing"].append(f"no intervals: they need data.seeds of {MIN_SEEDS} or more")
    return results


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
            row["undetected"] = float(after["undetected"][i].double().mean())
            rows.append(row | {"seen_as": _seen_as(after["seen"][i], words.all[i], words)})
    return rows


def _of(members: Sequence[int], words: Words, *values: Tensor) -> tuple[list[Any], ...]:
    """The names and the values of some words."""
    return [words.all[i] for i in members], *[[float(value[i]) for i in members] for value in values]


def _seen_as(seen: Tensor, word: str, words: Words) -> dict[str, float]:
    """The classes that were seen in a word's images in place of its own, with their shares, most frequent first."""
    counts = torch.bincount(seen[seen >= 0], minlength=len(words.names))
    shares = {name: float(n) / seen.numel() for name, n in zip(words.names, counts.tolist(), strict=True) if n}
    shares.pop(words.meaning[word], None)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def neighbours(
    targets: Sequence[str],
    preserved: Sequence[str],
    target_ND: Tensor,
    preserved_MD: Tensor,
    tokenizer: Tokenizer,
    count: int,
) -> dict[str, dict[str, list[str]]]:
    """The preserved names next to each target: ``embedding``, the nearest first, and ``tokens``, those that share a
    token.

    Args:
        targets: N names.
        preserved: M names.
        target_ND: unit text embeddings of the targets.
        preserved_MD: those of the preserved names.
        tokenizer: splits names into tokens.
        count: how many of either sort.
    """
    near = (target_ND @ preserved_MD.T).argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    pieces = {name: set(tokenizer(name, add_special_tokens=False).input_ids) for name in {*targets, *preserved}}
    return {
        target: {
            "embedding": [preserved[i] for i in near[row]],
            "tokens": [name for name in preserved if pieces[name] & pieces[target]][:count],
        }
        for row, target in enumerate(targets)
    }


def generated_features(tables: Tables, places: list[int]) -> Tensor:
    """[N, D] of the images of some words that were generated."""
    return tables["features"][places][tables["generated"][places] > 0]
