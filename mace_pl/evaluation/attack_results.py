"""Figures of attacks: rates by edit, target, way of asking and judge, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mace_pl.evaluation.attacks.registry import ATTACKS, IN_TURN

COLUMNS = ("edit", "target", "asked for by", "judge", "images", "before", "after", "95 % interval")
Z = 1.96  # standard deviations on either side of 95 % of a normal distribution


def figures(
    counts: Mapping[str, Tensor],
    edits: Sequence[str],
    targets: Sequence[str],
    kinds: Sequence[str],
    judges: Sequence[str],
    turns: Sequence[int],
) -> dict[str, Any]:
    """Rates by edit, target, kind and judge; what was not generated is left out.

    Args:
        counts: ``seen`` [E, C, K, J, 2] before and after, ``within`` [E, C, K, J, M] and ``generated`` [C, K].
        edits: E names.
        targets: C names.
        kinds: K names; of an attack the images are trials.
        judges: J names.
        turns: M numbers of steps, of attacks whose candidates come in turn.
    """
    seen, within, generated = (counts[name] for name in ("seen", "within", "generated"))
    results: dict[str, Any] = {}
    for e, edit in enumerate(edits):
        for c, target in enumerate(targets):
            own = results.setdefault(edit, {}).setdefault(target, {})
            for k, kind in enumerate(kinds):
                n = int(generated[c, k])
                if not n:
                    continue
                own[kind] = {"images": n}
                for j, judge in enumerate(judges):
                    own[kind][judge] = _rates(seen[e, c, k, j], n, kind in ATTACKS)
                    if kind in IN_TURN:
                        shares = (within[e, c, k, j] / n).tolist()
                        own[kind][judge]["within"] = {str(steps): s for steps, s in zip(turns, shares, strict=True)}
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
                        rows += [[edit, target, *cells] for cells in _lines(kind, judge, rates, found["images"])]
    return rows


def _lines(kind: str, judge: str, rates: Mapping[str, Any], n: int) -> list[list[str]]:
    """The cells behind edit and target; of candidates that come in turn a line for each."""
    before, after = (value for name, value in rates.items() if name not in ("interval", "within"))
    asked = kind.replace("_", " ")
    lines = [(f"{asked}, {steps} steps", share) for steps, share in rates.get("within", {}).items()]
    found = []
    for name, share in lines or [(asked, after)]:
        low, high = interval(round(share * n), n)
        found.append([name, judge, str(n), f"{before:.2f}", f"{share:.2f}", f"{low:.2f} … {high:.2f}"])
    return found
