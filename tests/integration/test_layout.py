"""The layout: the top levels, short files, heads of configs; who may import whom is a contract of `make lint`."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mace_pl"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "bundled" not in p.parts)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FOLDERS = {"mace_pl", "configs", "tests", "checkpoints", "benchmarks", "scripts", "docs", ".ci"}
FILES = {
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "NOTICE",
    "README.md",
    "erase.py",
    "mkdocs.yml",
    "pyproject.toml",
    "train.py",
}
MAX_LINES = 300
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


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
    command = re.compile(rf"python (erase\.py \w+|train\.py \w+|scripts/\w+\.py) .*{re.escape(name)}")
    assert any(command.search(line) for line in head), f"{name}: no command with {name} in the comment at its top"


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the files that git tracks"
)
def test_top_level_holds_only_what_belongs_there() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [Path(line) for line in tracked.splitlines()]
    assert {p.parts[0] for p in paths if len(p.parts) > 1} <= FOLDERS
    assert {p.name for p in paths if len(p.parts) == 1} <= FILES


def test_the_package_opens_on_what_a_newcomer_looks_for() -> None:
    found = {p.name for p in PACKAGE.iterdir() if p.suffix == ".py"}
    assert found <= {"__init__.py", "cli.py", "errors.py", "run.py", "train_cli.py", "version.py"}


@pytest.mark.parametrize("folder", sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()))
def test_every_room_says_what_is_in_it(folder: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")))


def born(method: ast.AST) -> set[str]:
    """The attributes of ``self`` that a method assigns to."""
    names = (n for n in ast.walk(method) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {n.attr for n in names if isinstance(n.value, ast.Name) and n.value.id == "self"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_all_attributes_exist_after_init(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ClassDef):
            continue
        named = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        named |= {t.id for n in node.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        named |= {name for method in methods if method.name == "__init__" for name in born(method)}
        late = {method.name: born(method) - named for method in methods}
        assert not any(late.values()), f"{node.name}: {late}"


def test_configs_hold_no_programs() -> None:
    assert not list((ROOT / "configs").rglob("*.py"))


BEHIND_THE_BACKBONE = re.compile(
    r"(?<!self)(?<!base)(?<!models)\.unet\b|\battn2\b|alphas_cumprod|\.encode_prompt\(|bos_token"
    r"|(?<!self)(?<!base)(?<!clip)\.(tokenizer|text_encoder|vae)(_2)?\b"  # a base's hash, and the classifier's own
    r"|getattr\(\w+, '(unet|vae|tokenizer|text_encoder)"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_network_is_asked_through_its_backbone(path: Path) -> None:
    """Names of layers, calls of the network and schedulers are known in ``models/``; training a UNet is one's own."""
    if path.relative_to(PACKAGE).parts[0] in ("models", "pretraining") or path.name.endswith("_card.py"):
        return  # cards print what users of diffusers write
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # what a docstring says is free
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    found = [line for line in ast.unparse(tree).splitlines() if BEHIND_THE_BACKBONE.search(line)]
    assert not found, found
