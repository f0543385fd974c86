"""Which of the trials is taken: those that no other beats in both scores, and a rule among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mace_pl.errors import UserError
from mace_pl.tuning.measure import Scores


@dataclass(frozen=True)
class Tried:
    """What was tried.

    Attributes:
        number: of the trial, from 1 on.
        values: weights by ``stage.term``, strengths by ``strength.target``.
        scores: by the judge of the search.
    """

    number: int
    values: Mapping[str, float]
    scores: Scores


def beats(one: Scores, other: Scores) -> bool:
    """Whether one is at least as good in both scores, and better in one."""
    a, b = (-one.acc_e, one.acc_s), (-other.acc_e, other.acc_s)
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those that no other beats, the one that erases most first; of equal scores the earliest."""
    best = [one for one in tried if not any(beats(other.scores, one.scores) for other in tried)]
    first: dict[Scores, Tried] = {}
    for one in sorted(best, key=lambda one: one.number):
        first.setdefault(one.scores, one)
    return sorted(first.values(), key=lambda one: one.scores.acc_e)


EXAMPLES = {"acc_e": 0.02, "acc_s": 0.95}


def limit(text: str | None, name: str, setting: str) -> float | None:
    """The number of ``acc_e=0.02``; None where nothing is given.

    Raises:
        UserError: something else.
    """
    if text is None:
        return None
    key, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if key != name or not 0 <= number <= 1:
        raise UserError(f"{setting}={text} must be {name}= and a number from 0 to 1, as in {name}={EXAMPLES[name]}.")
    return number


def pick(tried: Sequence[Tried], most: float | None, least: float | None) -> Tried:
    """The one of the front with the largest H among those within the limits; the earliest of equal ones.

    Args:
        tried: at least one.
        most: the largest acc_e that is allowed.
        least: the least acc_s that is allowed.

    Raises:
        UserError: none is within the limits.
    """
    best = front(tried)
    within = [
        one
        for one in best
        if (most is None or one.scores.acc_e <= most) and (least is None or one.scores.acc_s >= least)
    ]
    if not within:
        erased, kept = min(best, key=lambda one: one.scores.acc_e), max(best, key=lambda one: one.scores.acc_s)
        raise UserError(
            f"tune: no single trial is within the limits; the one with the least acc_e has {erased.scores}, the one "
            f"with the largest acc_s {kept.scores}. Give wider ones, or more --trials: the same command continues the "
            f"search."
        )
    return max(within, key=lambda one: (one.scores.h, -one.number))
