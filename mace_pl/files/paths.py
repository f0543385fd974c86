"""Where relative paths of configs point, and how files that are passed on name a model or a place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def resolve(path: str | Path) -> Path:
    """The first of working folder, checkout and ``mace_pl/bundled`` that holds ``path``; itself where none does."""
    given = Path(path).expanduser()
    # what lies beside an installed package is not ours
    checkout = [PACKAGE.parent] if (PACKAGE.parent / "pyproject.toml").is_file() else []
    for base in (Path(), *checkout, PACKAGE / "bundled"):
        if (base / given).exists():
            return base / given
    return given


def training_folder(output_dir: Path) -> Path:
    """Where a run that has not ended leaves what it resumes from, and its log."""
    return output_dir.with_name(f".{output_dir.name}.training")


def failed_folder(output: Path) -> Path:
    """Where a command other than ``fit`` that fails leaves its log: beside what it writes."""
    return output.with_name(f".{output.name}.failed")


def hub_id(name: str) -> str | None:
    """The name where it has the form of a hub id of two parts, else None."""
    return name if re.fullmatch(HUB_ID, name) else None


def model_name(pretrained: str) -> str:
    """How a written file names a model: by its hub id, or by the last part of its path.

    A folder that remembers the hub id it came from is named by that. Never a path of this machine.
    """
    folder = resolve(pretrained)
    if not folder.exists():
        return hub_id(pretrained) or Path(pretrained).name
    index = folder / "model_index.json"
    known: Any = json.loads(index.read_text(encoding="utf-8")).get("_name_or_path") if index.is_file() else None
    if isinstance(known, str) and hub_id(known) and not resolve(known).exists():
        return known
    return folder.resolve().name


def place_name(path: str | Path) -> str:
    """How a written file names a file or folder: as it was typed, without the folders of this machine above it."""
    place = Path(path).expanduser()
    if not place.is_absolute():
        return str(path)
    if place.is_relative_to(Path.cwd()):
        return place.relative_to(Path.cwd()).as_posix()
    return "/".join(place.parts[-2:]) if place.suffix else place.name
