"""Where a pipeline was loaded from, which an export needs to take over what it does not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """The files that a pipeline was loaded from: a folder or a single checkpoint; nothing of one that was made here.

    Attributes:
        folder: the diffusers folder; of a hub id the one in the cache.
        file: the single checkpoint.
        layout: the folder with the configurations of that checkpoint's parts, where one was given.
        variant: which files of the folder were read, as in ``fp16``.
    """

    folder: Path | None = None
    file: Path | None = None
    layout: Path | None = None
    variant: str | None = None

    @property
    def place(self) -> Path | None:
        """The folder or the single checkpoint."""
        return self.folder or self.file
