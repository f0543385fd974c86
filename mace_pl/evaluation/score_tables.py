"""The tables of ``test``, as rows of text: for the screen, Markdown and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mace_pl.evaluation.levels import ANSWERED, ROLES
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.evaluation.results import each_judge
from mace_pl.evaluation.shares import FAILS, MARK

NONE = "–"
COLUMNS = ("run", "Acc_e", "anchor", "other", "empty", "Acc_s", "Acc_g", "H")
LEVEL_COLUMNS = ("run", "level", "target", "anchor", "other", "empty", "near", "far", "rest", "prompts that count")


@dataclass(frozen=True)
class ScoreTable:
    """A table.

    Attributes:
        title: what it shows.
        columns: its head.
        rows: cells.
        notes: sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)


def score_tables(scores: Mapping[str, Any], chosen_by: str | None) -> list[ScoreTable]:
    """Top-1 accuracies and where images went; and rates by level, where levels were asked.

    Args:
        scores: as the JSON file holds them.
        chosen_by: the judge by which settings were chosen.
    """
    several = any("judges" in result for result in scores.values())
    runs = {name: result for name, result in scores.items() if name != ORIGINAL}
    rows = run_rows(runs, chosen_by) if runs else original_rows(scores[ORIGINAL], chosen_by)
    failed = [
        (name, why) for name, result in runs.items() for _, one in each_judge(result).items() for why in one["fails"]
    ]
    notes = [f"{MARK} {name} has failed: {why}" for name, why in dict.fromkeys(failed)]
    tables = [ScoreTable("Top-1 accuracy, before → after", with_judge(COLUMNS, several), rows, notes)]
    if "levels" in scores.get(ORIGINAL, {}):
        table = levels_table(runs, several, chosen_by) if runs else original_levels_table(scores, several, chosen_by)
        tables.append(table)
    return tables


def with_judge(columns: Sequence[str], several: bool) -> list[str]:
    """The columns, the judge after the run where there are several."""
    return [columns[0], *(["judge"] if several else []), *columns[1:]]


def labelled(result: Mapping[str, Any], chosen_by: str | None) -> list[tuple[list[str], Mapping[str, Any]]]:
    """The cells of the judge, none of a single one, and what it found."""
    rows = []
    for label, found in each_judge(result).items():
        said = "" if chosen_by is None else " (chose the settings)" if label == chosen_by else " (reports)"
        rows.append(([f"{label}{said}"] if label else [], found))
    return rows


def original_rows(original: Mapping[str, Any], chosen_by: str | None) -> list[list[str]]:
    """The original alone."""
    return [
        [ORIGINAL, *judge, *[NONE] * 4, f"{found['top1']['acc_s']:.3f}", NONE, NONE]
        for judge, found in labelled(original, chosen_by)
    ]


def run_rows(runs: Mapping[str, Any], chosen_by: str | None) -> list[list[str]]:
    """A row per run and judge, and means over runs."""
    rows: list[list[str]] = []
    harmonic: dict[str, list[tuple[float | None, bool]]] = {}
    for name, result in runs.items():
        for judge, found in labelled(result, chosen_by):
            before, after = (found[when]["top1"] for when in ("before", "after"))
            rates = [f"{before[k]:.3f} → {after[k]:.3f}" if k in after else NONE for k in ("acc_e", "acc_s", "acc_g")]
            h, failed = after.get("h"), bool(found["fails"])
            rows.append([name, *judge, rates[0], *went(found["after"]["shares"]), *rates[1:], marked(h, failed)])
            harmonic.setdefault("".join(judge), []).append((h, failed))
    for judge_label, values in harmonic.items():
        means = [h for h, _ in values if h is not None]
        if 1 < len(values) == len(means):
            mean = marked(sum(means) / len(means), any(failed for _, failed in values))
            rows.append([f"mean of {len(means)}", *([judge_label] if judge_label else []), *[""] * 6, mean])
    return rows


def marked(value: float | None, failed: bool) -> str:
    """A score, with the mark of failure in front."""
    return NONE if value is None else f"{MARK} {value:.3f}" if failed else f"{value:.3f}"


def went(shares: Mapping[str, float | None]) -> list[str]:
    """Cells of anchor, other and empty, the last with the mark of failure where it is too large."""
    cells = [NONE if shares.get(kind) is None else f"{shares[kind]:.3f}" for kind in ("anchor", "other", "empty")]
    return [*cells[:2], f"{MARK} {cells[2]}" if (shares.get("empty") or 0) > FAILS else cells[2]]


def levels_table(runs: Mapping[str, Any], several: bool, chosen_by: str | None) -> ScoreTable:
    """A row per run, judge and level."""
    rows = [
        [name, *judge, level, *level_cells(rates)]
        for name, result in runs.items()
        for judge, found in labelled(result, chosen_by)
        for level, rates in found.get("levels", {}).items()
    ]
    note = (
        f"Only prompts count that the original answers with {ANSWERED:.0%} of its seeds: counted of asked, of targets, "
        f"near and far preserved names. Rest: CLIP score of the targets' prompts without the name, before → after."
    )
    return ScoreTable("By levels of prompts, after the edit", with_judge(LEVEL_COLUMNS, several), rows, [note])


def original_levels_table(scores: Mapping[str, Any], several: bool, chosen_by: str | None) -> ScoreTable:
    """A row per judge and level of the original alone."""
    rows = [
        [ORIGINAL, *judge, level, f"{rates['seen']:.3f}", f"{rates['answered']} of {rates['asked']}"]
        for judge, found in labelled(scores[ORIGINAL], chosen_by)
        for level, rates in found["levels"].items()
    ]
    columns = with_judge(("run", "level", "seen", "prompts answered"), several)
    note = f"A prompt is answered where the name is seen in {ANSWERED:.0%} of its seeds."
    return ScoreTable("By levels of prompts", columns, rows, [note])


def level_cells(rates: Mapping[str, Any]) -> list[str]:
    """The cells of a level."""
    target = NONE if rates["target"] is None else f"{rates['target']:.3f}"
    preserved = [NONE if rates[role] is None else f"{rates[role]:.3f}" for role in ROLES[1:]]
    rest = NONE if rates["rest"] is None or None in rates["rest"] else "{:.1f} → {:.1f}".format(*rates["rest"])
    counted = ", ".join(f"{rates['counted'][role]} of {rates['asked'][role]}" for role in ROLES)
    return [target, *went(rates), *preserved, rest, counted]
