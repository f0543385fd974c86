"""What ``test`` found, by model and by judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mace_pl.data.levels import Asked
from mace_pl.evaluation.levels import Seen, level_results, original_levels
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.evaluation.run_scores import Tables, of_judge, original_results, run_results
from mace_pl.evaluation.words import Words

Anchors = Mapping[str, str | None]  # of a run, by target


@dataclass(frozen=True)
class Measured:
    """The tables of all models.

    Attributes:
        words: names and classes.
        tables: by model [W, P, S, J].
        asked: R prompts of levels.
        levels: tables of those by model [R, 1, S, J].
        judges: J labels.
    """

    words: Words
    tables: Mapping[str, Tables]
    asked: Sequence[Asked]
    levels: Mapping[str, Tables]
    judges: Sequence[str]

    def original(self, judge: int) -> dict[str, Any]:
        """What one judge found of the original."""
        main = of_judge(self.tables[ORIGINAL], judge)
        found = original_results(main, self.words)
        if self.asked:
            levels = of_judge(self.levels[ORIGINAL], judge)
            found["levels"] = original_levels(self.words, main, self.asked, levels)
        return found

    def results(self, run: str, judge: int, anchors: Anchors, near: Sequence[str]) -> dict[str, Any]:
        """What one judge found of a run."""
        before, after = (of_judge(self.tables[model], judge) for model in (ORIGINAL, run))
        found = run_results(before, after, self.words, anchors, near)
        if self.asked:
            levels = [of_judge(self.levels[model], judge) for model in (ORIGINAL, run)]
            found["levels"] = level_results(Seen(self.words, anchors, near, before, after, self.asked, *levels).all())
        return found


def all_results(
    measured: Measured, anchors: Mapping[str, Anchors], nearest: Mapping[str, Mapping[str, Mapping[str, list[str]]]]
) -> dict[str, Any]:
    """The scores by model, the original first: those of the first judge, and of each under ``judges`` if several.

    Args:
        measured: the tables.
        anchors: of each run, by target.
        nearest: the preserved names next to each target of each run.
    """
    judges = range(len(measured.judges))
    scores: dict[str, Any] = {ORIGINAL: by_judge([measured.original(judge) for judge in judges], measured.judges)}
    for name, own in anchors.items():
        near = sorted({word for result in nearest[name].values() for sort in result.values() for word in sort})
        found = [measured.results(name, judge, own, near) for judge in judges]
        scores[name] = by_judge(found, measured.judges) | {"nearest": nearest[name]}
    return scores


def by_judge(results: Sequence[dict[str, Any]], judges: Sequence[str]) -> dict[str, Any]:
    """The result of the first judge, and all of them under ``judges`` where there are several."""
    several = {"judges": dict(zip(judges, results, strict=True))} if len(judges) > 1 else {}
    return results[0] | several


def each_judge(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What each judge found of a model; of one judge under an empty label."""
    found: Mapping[str, Mapping[str, Any]] = result.get("judges", {})
    return dict(found) or {"": result}
