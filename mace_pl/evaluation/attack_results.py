"""Figures of attacks: rates by edit, target, way of asking and judge, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mace_pl.evaluation.attacks.registry import ATTACKS

COLUMNS = ("edit", "target", "asked for by", "judge", "images", "before", "after", "95 % interval")
Z = 1.96  # standard deviations on either side of 95 % of a normal distribution


def figures(
    seen: Tensor,
    generated: Tensor,
    edits: Sequence[str],
    targets: Sequence[str],
    kinds: Sequence[str],
    judges: Sequence[str],
) -> dict[str, Any]:
    """Rates by edit, target, kind and judge; what was not generated is left out.

    Args:
        seen: [E, C, K, J, 2] before and after.
        generated: [C, K].
        edits: E names.
        targets: C names.
        kinds: K names; of an attack the images are trials.
        judges: J names.
    """
    results: dict[str, Any] = {}
    for e, edit in enumerate(edits):
        for c, target in enumerate(targets):
            own = results.setdefault(edit, {}).setdefault(target, {})
            for k, kind in enumerate(kinds):
                n = int(generated[c, k])
                if n:
                    own[kind] = {"images": n} | {
                        judge: _rates(seen[e, c, k, j], n, kind in ATTACKS) for j, judge in enumerate(judges)
                    }
    return results


def _rates(seen: Tensor, n: int, attack: bool) -> dict[str, Any]:
    """Both rates, and the interval of the second."""
    before, after = int(seen[0]), int(seen[1])
    names = ("before", "after") if attack else ("original", "edited")
    return {names[0]: before / n, names[1]: after / n, "interval": interval(after, n)}


def interval(successes: int, n: int) -> list[float]:
    """Wilson's interval of 95 % of a rate of n trials; a bootstrap of no success in n would be no wider than zero."""
    rate, spread = successes / n, Z * Z / n
    middle, half = rate + spread / 2, Z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n))
    return [max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))]


def result_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells of :data:`COLUMNS`."""
    rows = []
    for edit, targets in results.items():
        for target, kinds in targets.items():
            for kind, found in kinds.items():
                for judge, rates in found.items():
                    if judge != "images":
                        before, after, (low, high) = rates.values()
                        shown = [f"{before:.2f}", f"{after:.2f}", f"{low:.2f} … {high:.2f}"]
                        rows.append([edit, target, kind.replace("_", " "), judge, str(found["images"]), *shown])
    return rows
