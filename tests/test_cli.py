"""The table of commands: the list needs no library, and each command is there."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mace_pl.cli import COMMANDS, USAGE, imported
from mace_pl.commands.lightning_commands import PARTS

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_commands_imports_no_library() -> None:
    code = (
        "import sys; from mace_pl.cli import erase_main; erase_main(['--help']); "
        "print(sorted({'torch', 'lightning', 'diffusers', 'transformers', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.startswith(USAGE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_something_to_run(name: str) -> None:
    command = COMMANDS[name]
    assert (command.function is None) == bool(command.trainer)
    if command.function is None:
        assert command.trainer in PARTS
    else:
        assert inspect.getdoc(imported(command.function))
    assert any(line.split()[:1] == [name] for line in USAGE.splitlines())


def test_the_console_commands_exist() -> None:
    assert callable(importlib.import_module("mace_pl.train_cli").train_main)
