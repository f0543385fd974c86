"""The log of a run: what all libraries log and warn of, with time and logger, and our own lines among them."""

from __future__ import annotations

import logging
import shutil
from logging.handlers import MemoryHandler
from pathlib import Path

from mace_pl.files.owned import LOG

LINE = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
LARGE = 10**9  # records in memory: nothing is dropped before a file is named


class RunLog(MemoryHandler):
    """Keeps what is logged in memory until the run's folder is known, then writes it there.

    Attributes:
        place: the file that is written; None as long as there is none.
    """

    def __init__(self) -> None:
        super().__init__(LARGE, flushOnClose=False)
        self.place: Path | None = None

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's name
        """Whether there is a file to write to."""
        return self.target is not None

    def open(self, folder: Path, rank: int = 0) -> None:
        """Write into a folder from now on, behind what an interrupted run has left there.

        Args:
            folder: made where it is missing.
            rank: of the distributed run; ranks above 0 have a file of their own.
        """
        if self.place is None:
            folder.mkdir(parents=True, exist_ok=True)
            self.place = folder / (f"run.rank{rank}.log" if rank else LOG)
            target = logging.FileHandler(self.place, encoding="utf-8")
            target.setFormatter(LINE)
            self.setTarget(target)
            self.flush()

    def shut(self) -> None:
        """Close the file; what is logged next waits in memory again."""
        target, self.place = self.target, None
        self.setTarget(None)
        if target is not None:
            target.close()

    def copy(self, folder: Path) -> None:
        """Close the file and copy the logs of all ranks beside it; nothing where no file is written."""
        if self.place is None:
            return
        written = self.place.parent
        self.shut()
        folder.mkdir(exist_ok=True)
        for file in logs(written):
            shutil.copyfile(file, folder / file.name)


def logs(folder: Path) -> list[Path]:
    """The logs of all ranks in a folder."""
    return sorted([*folder.glob(LOG), *folder.glob("run.rank*.log")])
