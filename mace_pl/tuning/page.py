"""A search as a page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader

from mace_pl.evaluation.ablation import INK
from mace_pl.tuning.measure import Scores
from mace_pl.tuning.pick import Tried, front
from mace_pl.tuning.space import STRENGTH, strengths_in

COLUMNS = ("trial", "erased ↑", "preserved ↑", "H ↑")


def table(tried: Sequence[Tried]) -> tuple[list[str], list[list[str]]]:
    """The trials that no other beats: columns and cells."""
    best = front(tried)
    strong = strengths_in(best[0].values)
    names = [name for name in best[0].values if not name.startswith(f"{STRENGTH}.")]
    rows = []
    for one in best:
        scores = (1 - one.scores.acc_e, one.scores.acc_s, one.scores.h)
        figures = [f"{value:.3f}" for value in scores]
        rows.append([str(one.number), *figures, *(f"{one.values[name]:.3g}" for name in names)])
        if strong:
            rows[-1].append(", ".join(f"{target} {value:.2f}" for target, value in strengths_in(one.values).items()))
    return [*COLUMNS, *names, *(["strengths"] if strong else [])], rows


def plot(tried: Sequence[Tried], start: Scores, picked: Tried) -> bytes:
    """What is preserved over what is erased, as an SVG that is read on light and dark pages."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="tight")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    best = front(tried)
    for label, group, marker, colour in (
        ("trials", [one.scores for one in tried], ".", INK),
        ("front", [one.scores for one in best], "o-", "#5b8be0"),
        ("as it was", [start], "s", "#d9483b"),
        ("taken", [picked.scores], "*", "#2f9e63"),
    ):
        line = "" if len(marker) == 1 else marker[1:]
        x, y = [1 - one.acc_e for one in group], [one.acc_s for one in group]
        axes.plot(x, y, label=label, marker=marker[0], linestyle=line or "none", color=colour)
    axes.set(xlabel="erased: 1 − Acc_e", ylabel="preserved: Acc_s", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.3)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    for side in axes.spines.values():
        side.set_color(INK)
    axes.legend(labelcolor=INK, framealpha=0)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()


def page(content: Mapping[str, Any], tried: Sequence[Tried], start: Scores, picked: Tried) -> str:
    """The whole page.

    Args:
        content: as it is in ``tuning.json``.
        tried: the trials that were scored.
        start: scores of the run as it was.
        picked: what was taken.
    """
    columns, rows = table(tried)
    image = base64.b64encode(plot(tried, start, picked)).decode()
    environment = Environment(loader=PackageLoader("mace_pl.tuning", "."), autoescape=True)
    return environment.get_template("tuning.html.jinja").render(
        content=content, columns=columns, rows=rows, picked=str(picked.number), image=image
    )
