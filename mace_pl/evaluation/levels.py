"""Rates by levels of prompts: only those count that the original model itself answers.

Legend: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_pl.data.levels import LEVELS, NAME, SYNONYMS, Asked
from mace_pl.evaluation.shares import SHARES, anchor_classes, destinations
from mace_pl.evaluation.words import Words

ANSWERED = 0.8  # of its seeds: the original answers a prompt, as four of five
ROLES = ("target", "near", "far")
Tables = Mapping[str, Tensor]  # of one judge


@dataclass(frozen=True)
class Rated:
    """A prompt with what was seen of it.

    Attributes:
        level: one of :data:`LEVELS`.
        role: ``target``; ``near`` or ``far`` of a preserved name.
        before: share of the original's images that show the name.
        after: shares of the edit's images: of :data:`SHARES` for a target, without ``anchor`` where that is no class;
            of ``right`` ones for a preserved name.
        rest: CLIP scores of the prompt without the name, before and after; None where nothing is left of it.
    """

    level: str
    role: str
    before: float
    after: Mapping[str, float]
    rest: tuple[float, float] | None = None


@dataclass(frozen=True)
class Seen:
    """What a judge saw of an original and of an edit of it.

    Attributes:
        words: names and classes.
        anchors: what the edit erases, and what it puts in place of each, where that is known.
        near: preserved names next to those.
        before: tables [W, P, S] of the original.
        after: tables of the edit.
        asked: R prompts of levels.
        asked_before: tables [R, 1, S] of the original.
        asked_after: tables of the edit.
    """

    words: Words
    anchors: Mapping[str, str | None]
    near: Sequence[str]
    before: Tables
    after: Tables
    asked: Sequence[Asked]
    asked_before: Tables
    asked_after: Tables

    def role(self, name: str) -> str:
        """What a name is to the edit."""
        return "target" if name in self.anchors else "near" if name in self.near else "far"

    def rated(self, level: str, name: str, cell: tuple[Tables, Tables], place: tuple[int, int], rest: str) -> Rated:
        """A prompt of ``name`` in a cell (row, template) of two tables, of the original and of the edit."""
        own, anchor = self.words.same(name), anchor_classes(self.words, self.anchors, name)
        role = self.role(name)
        known = [table["generated"][place] > 0 for table in cell]
        right = torch.isin(cell[0]["seen"][place][known[0]], torch.tensor(own))
        seen, empty = (cell[1][kind][place][known[1]] for kind in ("seen", "empty"))
        if role == "target":
            after = dict(zip(SHARES, destinations(seen, empty, own, anchor).mean(1).tolist(), strict=True))
            after = after if anchor else {kind: share for kind, share in after.items() if kind != "anchor"}
        else:
            after = {"right": float(torch.isin(seen, torch.tensor(own)).double().mean())}
        scores = [float(t["clip_score"][place][k].mean()) for t, k in zip(cell, known, strict=True)]
        return Rated(level, role, float(right.double().mean()), after, (scores[0], scores[1]) if rest else None)

    def all(self) -> list[Rated]:
        """Every prompt that both models answered with an image."""
        main, levels = (self.before, self.after), (self.asked_before, self.asked_after)
        own = [(NAME, name, name) for name in self.words.names]
        own += [(SYNONYMS, t, word) for t in self.anchors for word in self.words.synonyms.get(t, [])]
        cells = [
            (level, name, main, (self.words.all.index(word), template), "")
            for level, name, word in own
            for template in range(self.before["seen"].shape[1])
        ]
        cells += [(one.level, one.name, levels, (i, 0), one.rest) for i, one in enumerate(self.asked)]
        there = [cell for cell in cells if all(bool(table["generated"][cell[3]].any()) for table in cell[2])]
        return [self.rated(*cell) for cell in there]


def level_results(rated: Sequence[Rated]) -> dict[str, dict[str, Any]]:
    """By level: ``asked`` and ``counted`` prompts by role, and the means of those that count.

    ``target``, ``anchor``, ``other`` and ``empty`` are where images of the targets went, ``near`` and ``far`` how often
    preserved names are seen, ``before`` the same of the original by role, ``rest`` the CLIP scores of the targets'
    prompts without the name, before and after. What no prompt tells is None.
    """
    found = {}
    for level in LEVELS:
        here = [one for one in rated if one.level == level]
        if not here:
            continue
        counted = [one for one in here if one.before >= ANSWERED]
        by_role = {role: [one for one in counted if one.role == role] for role in ROLES}
        rests = [one.rest for one in by_role["target"] if one.rest is not None]
        found[level] = {
            "asked": {role: sum(one.role == role for one in here) for role in ROLES},
            "counted": {role: len(own) for role, own in by_role.items()},
            "before": {role: _mean([one.before for one in own]) for role, own in by_role.items()},
            **{kind: _mean([one.after[kind] for one in by_role["target"] if kind in one.after]) for kind in SHARES},
            **{role: _mean([one.after["right"] for one in by_role[role]]) for role in ROLES[1:]},
            "rest": [_mean([rest[when] for rest in rests]) for when in (0, 1)] if rests else None,
        }
    return found


def original_levels(words: Words, main: Tables, asked: Sequence[Asked], levels: Tables) -> dict[str, dict[str, Any]]:
    """By level of the original alone: ``asked`` prompts, how many are ``answered``, and the share of images that are
    ``seen`` rightly.

    Args:
        words: names and classes.
        main: tables [W, P, S].
        asked: R prompts of levels.
        levels: tables of those [R, 1, S].
    """
    rated = Seen(words, dict.fromkeys(words.synonyms), [], main, main, asked, levels, levels).all()
    by_level = {level: [one.before for one in rated if one.level == level] for level in LEVELS}
    return {
        level: {"asked": len(own), "answered": sum(share >= ANSWERED for share in own), "seen": _mean(own)}
        for level, own in by_level.items()
        if own
    }


def _mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None
