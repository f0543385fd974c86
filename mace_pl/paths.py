"""Where relative paths of the configs point: the working folder, the checkout, or the files shipped with the package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def resolve(path: str | Path) -> Path:
    """The first of working folder, project root and ``mace_pl/bundled`` that holds ``path``; itself where none does."""
    given = Path(path).expanduser()
    for base in (Path(), PACKAGE.parent, PACKAGE / "bundled"):
        if (base / given).exists():
            return base / given
    return given
