"""The figures of an edit without an image, as a run's report holds them, in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace_pl.files.markdown import markdown_table
from mace_pl.files.tables import read_yaml

FILE = "reach.json"  # in a run's report
COLUMNS = ("target", "best embedding: size", "residual", "target moved", "nearest names: moved")
NOTE = (
    "Of the embedding that the edited keys and values see most like the target: its size beside the target's own, and "
    "the part of the target that they do not see in it. Moved: how far the edit moves what is seen of a bare name; "
    "1 is how far names are from their mean. None of these says whether an attack succeeds."
)


def reach_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Cells of :data:`COLUMNS`, a row for each target."""
    rows = []
    for target, own in found.items():
        near = ", ".join(f"{one['name']} {one['moved']:.2f}" for one in own["near"])
        rows.append([target, *(f"{own[name]:.2f}" for name in ("size", "residual", "moved")), near or "–"])
    return rows


def add_to_summary(file: Path, found: Mapping[str, Any]) -> None:
    """The figures as a section of a run's summary."""
    with file.open("a", encoding="utf-8") as summary:
        summary.write(f"\n## Without an image\n\n{markdown_table(COLUMNS, reach_rows(found))}\n\n{NOTE}\n")


def read_reach(report: Path) -> dict[str, Any]:
    """The figures of a run's report; empty where it has none."""
    file = report / FILE
    return dict(read_yaml(file, "model.runs")) if file.is_file() else {}
