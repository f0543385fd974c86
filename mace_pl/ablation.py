"""Scores of an edit in variants, such as without one of its stages: read from files, shown in the report page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mace_pl.errors import UserError
from mace_pl.paths import resolve
from mace_pl.shown import ORIGINAL

SERIES = {"acc_e": ("Acc_e ↓", "--bad", "2 4"), "acc_s": ("Acc_s ↑", "--good", "8 4"), "h": ("H ↑", "--mark", "none")}
WIDTH, HEIGHT, EDGE = 640, 240, 32  # of the drawing, and around its axes

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
            found = json.loads(resolve(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"model.ablation: {file} cannot be read as JSON ({error}).") from error
        given = _runs(found["scores"]) if isinstance(found, dict) and "scores" in found else found
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
    return [{"label": name} | found["after"]["top1"] for name, found in scores.items() if name != ORIGINAL]


def _complete(row: Any) -> bool:
    """Whether a row has everything that is shown."""
    values = [row.get(key) for key in SERIES] if isinstance(row, dict) and isinstance(row.get("label"), str) else [None]
    return all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in values)


def curve(rows: Sequence[Row]) -> str:
    """The three scores over the numbers of the rows, as an SVG inside the page."""
    step = (WIDTH - 2 * EDGE) / max(len(rows) - 1, 1)

    def height(value: float) -> float:
        return round(HEIGHT - EDGE - value * (HEIGHT - 2 * EDGE), 1)

    html = ""
    for value in (0, 0.5, 1):
        y = height(value)
        html += f'<line x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{y}" y2="{y}" stroke="var(--rule)"/>'
        html += f'<text x="{EDGE - 6}" y="{y + 4}" text-anchor="end">{value}</text>'
    places = [round(EDGE + i * step, 1) for i in range(len(rows))]
    for i, x in enumerate(places, 1):
        html += f'<text x="{x}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{i}</text>'
    for place, (key, (name, colour, dashes)) in enumerate(SERIES.items()):
        points = [(x, height(row[key])) for x, row in zip(places, rows, strict=True)]
        line = " ".join(f"{x},{y}" for x, y in points)
        stroke = f'stroke="var({colour})" stroke-width="2"'
        html += f'<polyline points="{line}" fill="none" stroke-dasharray="{dashes}" {stroke}/>'
        html += "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="var({colour})"/>' for x, y in points)
        left = EDGE + 110 * place
        html += f'<line x1="{left}" x2="{left + 28}" y1="12" y2="12" stroke-dasharray="{dashes}" {stroke}/>'
        html += f'<text x="{left + 34}" y="16">{name}</text>'
    style = "width: 100%; max-width: 40rem; font-size: 12px; fill: currentColor"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Scores by row" style="{style}">{html}</svg>'


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows of the table: number, label and scores, as HTML."""
    return [[str(i), escape(row["label"]), *[f"{row[key]:.3f}" for key in SERIES]] for i, row in enumerate(rows, 1)]
