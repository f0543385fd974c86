"""Files that lie in two folders, once on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def take(source: Path, own: Path) -> None:
    """Take a file over, where it is there: as a link, so that it lies on the disk once, or as a copy."""
    if source.is_file():
        own.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), own)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, own)
