"""A progress bar for pictures that are drawn outside of Lightning's loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def drawing(trainer: Any, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is called with each number of pictures done.

    Args:
        trainer: the Trainer; where its bars are switched off there is none here either.
        stage: what is being done.
        total: pictures in all.
    """
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(stage, total=total)
        yield lambda done: progress.advance(task, done)
