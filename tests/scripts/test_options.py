"""The page of options is what the commands print."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mace_pl.cli import USAGE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """``scripts/options.py`` as a module."""
    spec = importlib.util.spec_from_file_location("options_script", ROOT / "scripts" / "options.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_is_current(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page() == text, "run python scripts/options.py"


def test_every_command_has_its_section(script: ModuleType) -> None:
    named = set(re.findall(r"^  ([a-z-]+) ", USAGE, flags=re.MULTILINE))
    assert named == {*script.COMMANDS, "compare"}, "compare takes the options of test"
    sections = re.split(r"^## (\S+)$", script.PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sections[1::2] == list(script.COMMANDS)
    assert all("\n| `--" in section for section in sections[2::2])


def test_a_help_becomes_rows(script: ModuleType) -> None:
    text = """usage: erase.py [options]

options:
  -h, --help            Show this help message and exit.
  --run RUN             output folder of ``fit``. (required, type: str)

the model:
  --model CONFIG        Path to a configuration file.
  --model.kind KIND, --model.kind+ KIND
                        one of a|b,
                        or both (as told). (type: Union[str, null], default: (a), known subclasses: x.Y, z.A)
  --trainer.devices DEVICES
                        not ours. (type: int, default: 1)
"""
    rows = [script.described(o) for group in script.groups(text) for o in script.of_ours(group)]
    assert rows == [
        "| `--run` | output folder of `fit`. | required |",
        "| `--model.kind` | one of a\\|b, or both (as told). | `(a)` |",
    ]
