"""Tables in Markdown in which every name is shown as it is."""

from __future__ import annotations

from collections.abc import Sequence

SUMMARY = "summary.md"  # in a run's report


def plain(text: object) -> str:
    """Text that is neither a border of a table nor a tag of HTML."""
    return str(text).replace("|", "&#124;").replace("<", "&lt;")


def markdown_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table with a head, a line for each row."""
    lines = [f"| {' | '.join(plain(cell) for cell in line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
