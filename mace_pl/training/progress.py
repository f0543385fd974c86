"""A progress bar for images that are generated outside of Lightning's loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
