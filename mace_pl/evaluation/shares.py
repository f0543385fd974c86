"""What images of an erased name show instead: target, anchor, another name, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mace_pl.evaluation.words import Words

SHARES = ("target", "anchor", "other", "empty")
FAILS = 0.02  # share of empty images above which an erasure has failed
MARK = "✗"


def destinations(seen: Tensor, empty: Tensor, targets: Sequence[int], anchors: Sequence[int]) -> Tensor:
    """[4, ...] float64, one of :data:`SHARES` per image: 1 where it belongs, an empty image to ``empty`` alone.

    Args:
        seen: [...] the class that a judge sees, −1 for none.
        empty: [...] where the image shows nothing.
        targets: classes that mean the target.
        anchors: classes that mean its anchor.
    """
    blank = empty.bool()
    target = torch.isin(seen, torch.tensor(targets, dtype=seen.dtype)) & ~blank
    anchor = torch.isin(seen, torch.tensor(anchors, dtype=seen.dtype)) & ~blank & ~target
    return torch.stack([target, anchor, ~(target | anchor | blank), blank]).double()


def shares(
    tables: Mapping[str, Tensor], words: Words, places: Sequence[int], anchors: Mapping[str, str | None]
) -> dict[str, float | None]:
    """The mean of :func:`destinations` over some words; ``anchor`` is None where no anchor is a class.

    Args:
        tables: of one judge, as :func:`mace_pl.evaluation.run_scores.by_seed` takes them.
        words: names and classes.
        places: the words, by index: erased names, or synonyms of them.
        anchors: by target, where it is known.
    """
    found = []
    for place in places:
        target = words.meaning[words.all[place]]
        there = tables["generated"][place] > 0
        means = destinations(
            tables["seen"][place], tables["empty"][place], words.same(target), anchor_classes(words, anchors, target)
        )
        found += [means[:, there].mean(1)] if bool(there.any()) else []
    if not found:
        return {}
    known = any(anchor_classes(words, anchors, words.meaning[words.all[place]]) for place in places)
    values = dict(zip(SHARES, torch.stack(found).mean(0).tolist(), strict=True))
    return values | ({} if known else {"anchor": None})


def anchor_classes(words: Words, anchors: Mapping[str, str | None], target: str) -> list[int]:
    """The classes that mean the anchor of a target; none where it has no anchor, or one that is no class."""
    anchor = anchors.get(target)
    return words.same(anchor) if anchor else []


def unknown_anchors(words: Words, anchors: Mapping[str, str | None]) -> list[str]:
    """Sentences on anchors that no judge can see, since they are no classes."""
    unseen = sorted({anchor for anchor in anchors.values() if anchor and not words.same(anchor)})
    said = ", ".join(repr(anchor) for anchor in unseen)
    return [f"images of the anchor {said} count as other: name it in model.names"] if unseen else []


def failures(erased: Mapping[str, float | None], synonyms: Mapping[str, float | None]) -> list[str]:
    """Why an erasure has failed whatever its scores say."""
    return [
        f"{found['empty']:.0%} of the images of {what} are empty"
        for what, found in (("what is erased", erased), ("its synonyms", synonyms))
        if (found.get("empty") or 0) > FAILS
    ]
