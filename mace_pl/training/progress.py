"""How far something is: a bar for images outside of Lightning's loops, lines where nobody sees a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mace_pl.files.screen import screen


@contextmanager
def image_progress(shown: bool, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is called with each number of images done.

    Args:
        shown: whether there is a bar, as :func:`mace_pl.training.trainer.shows_progress` says.
        stage: what is being done.
        total: images in all.
    """
    columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(stage, total=total)
        yield lambda done: progress.advance(task, done)


def said_by_tenths(stage: str, total: int, what: str) -> Callable[[int], None]:
    """Called with each number that is done, it says each tenth of all in a line, where no bar shows them.

    Args:
        stage: what is being done.
        total: how many in all; nothing is said of none.
        what: is counted, in the plural.
    """
    done = 0

    def told(more: int) -> None:
        nonlocal done
        before, done = 10 * done // max(total, 1), done + more
        if 10 * done // max(total, 1) > before:
            screen().print(f"{stage}: {done} of {total} {what}", highlight=False)

    return told
