"""The README is short, names every command, and its links and those names that the documents use lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mace_pl.cli import USAGE

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and mkdocs make them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_the_readme_is_a_front_door() -> None:
    assert len(README.splitlines()) <= 150
    named = re.findall(r"^  ([a-z-]+) ", USAGE, flags=re.MULTILINE)
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| .* \| \[.*\]\(docs/.*\) \|$", README, flags=re.MULTILINE)
    table = [name for row in rows for name in re.findall(r"[a-z-]+", row)]
    assert sorted(table) == sorted(named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", README))))
def test_link_leads_somewhere(target: str) -> None:
    path, _, anchor = target.partition("#")
    assert (ROOT / path).exists(), f"README links to {path}, which does not exist"
    assert not anchor or anchor in anchors(ROOT / path), f"README links to {target}, a heading that does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:configs|benchmarks|scripts|mace_pl)/[\w/.]*\w(?:\.py|\.yaml|\.csv|\.txt|\.md))\b", text)
    for name in named:
        assert (ROOT / name).is_file(), f"{document.name} names {name}, which does not exist"


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^(\w+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_/]+(?:\.py|/))", ARCHITECTURE))))
def test_the_architecture_names_what_exists(name: str) -> None:
    assert (ROOT / name).exists() or (ROOT / "mace_pl" / name).exists(), f"there is no {name}"
