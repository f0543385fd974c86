"""Where relative paths of configs point: the working folder, the checkout, or the files shipped with the package."""

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


def with_bundled(args: list[str]) -> list[str]:
    """``--config`` files are looked up in the project and in the installed package too."""
    found = list(args)
    for i, word in enumerate(args):
        if word.startswith("--config="):
            found[i] = f"--config={resolve(word.split('=', 1)[1])}"
        elif word == "--config" and i + 1 < len(args):
            found[i + 1] = str(resolve(args[i + 1]))
    return found
