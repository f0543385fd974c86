"""The README's commands, names and links fit the project."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERASE = "fit validate test predict compare attack detect cache fuse export merge inspect import-cache prompts"
SUBCOMMANDS = {"erase.py": set(ERASE.split()), "train.py": {"fit", "validate", "test", "predict"}}


def commands() -> list[list[str]]:
    """Every ``python erase.py`` and ``python train.py`` line of the README's shell blocks, continued lines joined."""
    found: list[list[str]] = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"python (erase|train)\.py ", line):
                found.append(shlex.split(line, comments=True)[1:])
    return found


def test_the_main_command_is_shown() -> None:
    assert ["erase.py", "fit", "--config", "configs/emoji/erase_ship.yaml"] in commands()


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_names_what_exists(command: list[str]) -> None:
    script, subcommand, *options = command
    assert (ROOT / script).is_file()
    assert subcommand in SUBCOMMANDS[script]
    for flag, value in zip(options, options[1:], strict=False):
        if flag == "--config":
            assert (ROOT / value).is_file(), f"README names {value}, which does not exist"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", "\n".join(re.findall(r"```bash\n.*?```|`make \w+`", README, re.DOTALL))))
    assert named == {"demo", "test", "train"}
    assert named <= targets


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))))
def test_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists(), f"README links to {target}, which does not exist"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(mace_pl/[\w/]+(?:\.py|/))`", README))))
def test_reading_order_names_files(path: str) -> None:
    assert (ROOT / path).exists(), f"README names {path}, which does not exist"
