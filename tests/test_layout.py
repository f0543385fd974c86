"""The layout that the README describes: who imports whom, the top level, short files, heads of configs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mace_pl"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "bundled" not in p.parts)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FOLDERS = {"mace_pl", "configs", "tests", "checkpoints", ".ci"}
FILES = {
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "NOTICE",
    "README.md",
    "erase.py",
    "pyproject.toml",
    "train.py",
}
MAX_LINES = 300

# What the two halves and the package around them may not reach; everything else is open to them.
FORBIDDEN = {"data": {"modules", "callbacks", "cli"}, "modules": {"data", "cli"}, "callbacks": {"cli"}}
JOINING = {"cli", "train_cli", "__init__", "api"}  # wire the halves together
PURE = {"closed_form": {"torch"}}  # beside the standard library and our errors, what a file of plain maths may import


def imports_of(source: str) -> set[str]:
    """Every dotted name that a file imports, ``from a import b`` as ``a.b``, wherever in the file it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}; write mace_pl. in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    """``data``, ``modules`` or ``callbacks`` for files in these, else the file's own name without its ending."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def misplaced(path: Path, source: str) -> set[str]:
    """The imports by which ``path`` breaks the layout."""
    part, names = part_of(path), imports_of(source)
    forbidden = FORBIDDEN.get(part, set() if part in JOINING else {"data", "modules", "callbacks", "cli"})
    found = {n for n in names if n.startswith("mace_pl.") and n.split(".")[1] in forbidden}
    if part in PURE:
        outside = {n for n in names if not n.startswith("mace_pl.errors.")}
        found |= {n for n in outside if n.split(".")[0] not in PURE[part] | sys.stdlib_module_names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    found = misplaced(path, path.read_text(encoding="utf-8"))
    assert not found, f"{path.relative_to(ROOT)} must not import {sorted(found)}"


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("data/concepts.py", "from mace_pl.modules.mace import Mace", {"mace_pl.modules.mace.Mace"}),
        ("modules/mace.py", "def f():\n    import mace_pl.data.captions", {"mace_pl.data.captions"}),
        ("modules/mace.py", "from mace_pl import data", {"mace_pl.data"}),
        ("lora.py", "from mace_pl.callbacks.report import Report", {"mace_pl.callbacks.report.Report"}),
        ("closed_form.py", "import numpy as np", {"numpy"}),
        ("closed_form.py", "import torch\nfrom collections.abc import Sequence", set()),
        ("cli.py", "from mace_pl.modules.mace import Mace", set()),
    ],
)
def test_the_import_check_sees(path: str, source: str, found: set[str]) -> None:
    assert misplaced(PACKAGE / path, source) == found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it"


@pytest.mark.parametrize("name", ["erase.py", "train.py"])
def test_scripts_only_call_the_package(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 10
    assert {n.split(".")[0] for n in imports_of(source)} == {"mace_pl"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_starts_with_its_command(path: Path) -> None:
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    name = path.relative_to(ROOT).as_posix()
    command = re.compile(rf"python (erase|train)\.py \w+ .*{re.escape(name)}")
    assert any(command.search(line) for line in head), f"{name}: no command with {name} in the comment at its top"


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the files that git tracks"
)
def test_top_level_holds_only_what_belongs_there() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [Path(line) for line in tracked.splitlines()]
    assert {p.parts[0] for p in paths if len(p.parts) > 1} <= FOLDERS
    assert {p.name for p in paths if len(p.parts) == 1} <= FILES
