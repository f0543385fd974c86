"""The tables of the results page in Markdown, and their places in a text such as docs/results.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from mace_pl.data.levels import DESCRIPTIONS, SENTENCES
from mace_pl.evaluation.shares import MARK
from mace_pl.files.artifacts import written_aside

Row = Mapping[str, Any]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HEAD = ["erased", "anchor", "Acc_e ↓", "Acc_s ↑", "Acc_g ↓", "H ↑", "CLIP's H ↑", "to the anchor ↑", "empty ↓"]
LEVELS_HEAD = ["sentences ↓", "descriptions ↓"]
BESIDE_HEAD = "names without a manner ↑"


def plain(value: float | None) -> str:
    """Three digits; a dash for nothing."""
    return "–" if value is None else f"{value:.3f}"


def pair(before: float | None, after: float | None) -> str:
    """A score, original → edited."""
    return "–" if after is None else f"{plain(before)} → {plain(after)}"


def cells(row: Row, levels: bool, beside: bool) -> list[str]:
    """A line of a table: the reporting judge's scores, and CLIP's H beside them."""
    if "refused" in row:
        return [row["set"], "", f"refused: {row['refused']}"]
    reporting, other = next(iter(row["results"].values())), list(row["results"].values())[-1]
    before, after = (reporting[when]["top1"] for when in ("before", "after"))
    anchors = list(dict.fromkeys(concept["anchor"] for concept in row["concepts"]))
    shares = reporting["after"]["shares"]
    line = [row["set"], anchors[0] if len(anchors) == 1 else f"{len(anchors)} names"]
    line += [pair(before.get(name), after.get(name)) for name in ("acc_e", "acc_s", "acc_g")]
    line += [plain(after["h"]), plain(other["after"]["top1"]["h"])]
    line += [plain(shares.get("anchor")), plain(shares["empty"]) + (f" {MARK}" if reporting["fails"] else "")]
    if levels:
        found = [reporting.get("levels", {}).get(level) for level in (SENTENCES, DESCRIPTIONS)]
        line += ["–" if own is None else pair(own["before"]["target"], own["target"]) for own in found]
    if beside:
        line.append(pair(*next(iter(row["beside"].values()))) if "beside" in row else "–")
    return line


def table(rows: Sequence[Row]) -> str:
    """The rows of a table, the mean of those with one target below them where there are several."""
    there = [row for row in rows if "results" in row]
    levels = any("levels" in next(iter(row["results"].values())) for row in there)
    beside = any("beside" in row for row in there)
    lines = [cells(row, levels, beside) for row in rows]
    single = [row for row in there if len(row["concepts"]) == 1]
    if len(single) > 1:
        tops = [[own["after"]["top1"]["h"] for own in row["results"].values()] for row in single]
        means = [plain(sum(top[judge] for top in tops) / len(tops)) for judge in (0, -1)]
        lines.append([f"mean of {len(single)}", "", "", "", "", *means])
    head = [*HEAD, *(LEVELS_HEAD if levels else []), *([BESIDE_HEAD] if beside else [])]
    return markdown(head, [line + [""] * (len(head) - len(line)) for line in lines])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Acc_s over Acc_e by the reporting judge, a line per method."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in (row for row in rows if "results" in row and row["curve"]):
        top = next(iter(row["results"].values()))["after"]["top1"]
        points.setdefault(row["method"], []).append((top["acc_e"], top["acc_s"], row["curve"]))
    for place, (method, own) in zip(((8, -12), (-8, 8)), points.items(), strict=False):
        own.sort()
        axes.plot([x for x, _, _ in own], [y for _, y, _ in own], marker="o", label=method)
        for x, y, weight in own:  # the words of one line below it, those of the other above
            side: Literal["left", "right"] = "left" if place[0] > 0 else "right"
            axes.annotate(weight, (x, y), textcoords="offset points", xytext=place, ha=side)
    axes.margins(x=0.12, y=0.08)
    axes.set(xlabel="Acc_e, lower is better", ylabel="Acc_s, higher is better", title="Weight of the domain")
    axes.legend()
    figure.tight_layout()
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def inserted(text: str, tables: Mapping[str, str]) -> str:
    """The text with each table between its marks, ``<!-- name -->`` and ``<!-- /name -->``, in place of the old one.

    Raises:
        ValueError: a table without its marks.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text, places = re.subn(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)  # noqa: B023
        if places != 1:
            raise ValueError(f"The text needs one pair of marks <!-- {name} --> and <!-- /{name} -->; it has {places}.")
    return text


def insert(path: Path, tables: Mapping[str, str]) -> None:
    """Put tables into a file."""
    with written_aside(path) as aside:
        aside.write_text(inserted(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"{', '.join(tables)} written into {path}")
