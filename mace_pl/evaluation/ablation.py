"""Scores of an edit in variants, such as without one of its stages: read from files, shown in the report page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mace_pl.errors import UserError
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.files.paths import resolve

SERIES = {
    "acc_e": ("Acc_e ↓", "#d9483b", "dotted"),
    "acc_s": ("Acc_s ↑", "#2f9e63", "dashed"),
    "h": ("H ↑", "#5b8be0", "solid"),
}
INK = "#808a95"  # read on light and on dark pages

Row = dict[str, Any]  # label, acc_e, acc_s, h


def read_ablation(files: Sequence[str]) -> list[Row]:
    """The rows of several files in order, ``label``, ``acc_e``, ``acc_s`` and ``h`` each.

    Args:
        files: JSON files with a list of such rows, or score files of ``test``, which give a row per run.

    Raises:
        UserError: naming a file that cannot be read, or a row that lacks something.
    """
    rows: list[Row] = []
    for file in files:
        try:
            content = json.loads(resolve(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"model.ablation: {file} cannot be read as JSON ({error}).") from error
        given = _runs(content["scores"]) if isinstance(content, dict) and "scores" in content else content
        if not isinstance(given, list) or not given or not all(_complete(row) for row in given):
            keys = ", ".join(SERIES)
            raise UserError(
                f"model.ablation: {file} must hold a list of rows with label, {keys} (numbers from 0 to 1), "
                f"or scores of test with a run whose targets are in data.names."
            )
        rows += [{key: row[key] for key in ("label", *SERIES)} for row in given]
    return rows


def _runs(scores: Mapping[str, Any]) -> list[Row]:
    """A row per run of a score file."""
    return [{"label": name} | score["after"]["top1"] for name, score in scores.items() if name != ORIGINAL]


def _complete(row: Any) -> bool:
    """Whether a row has everything that is shown."""
    values = [row.get(key) for key in SERIES] if isinstance(row, dict) and isinstance(row.get("label"), str) else [None]
    return all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in values)


def curve(rows: Sequence[Row]) -> bytes:
    """The three scores over the numbers of the rows, as an SVG that is read on light and dark pages."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.8), layout="tight")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    numbers = list(range(1, len(rows) + 1))
    for key, (name, colour, line) in SERIES.items():
        axes.plot(numbers, [row[key] for row in rows], label=name, color=colour, linestyle=line, marker="o")
    axes.set(ylim=(-0.05, 1.05), xticks=numbers)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=INK, alpha=0.3)
    for side in axes.spines.values():
        side.set_color(INK)
    axes.legend(labelcolor=INK, framealpha=0, ncols=len(SERIES), loc="lower left", bbox_to_anchor=(0, 1))
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True)
    return svg.getvalue()


def head() -> list[str]:
    """The columns of the table."""
    return ["", "variant", *[name for name, _, _ in SERIES.values()]]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows of the table: number, label and scores."""
    return [[str(i), row["label"], *[f"{row[key]:.3f}" for key in SERIES]] for i, row in enumerate(rows, 1)]
