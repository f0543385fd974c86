"""The table of commands: the list needs no library, and each command is there."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mace_pl import erase
from mace_pl.cli import COMMANDS, USAGE, erase_main, imported
from mace_pl.commands.lightning_commands import PARTS
from mace_pl.files.taken import refuse_taken

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


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.function is not None])
def test_a_command_without_its_options_is_one_line(name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        erase_main([name])
    message = str(stop.value.code)
    assert message.startswith(f"erase.py {name}: error: ") and "required" in message and "\n" not in message


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("attack", "--model.pretrained, --model.edited, --data.names, --data.targets"),
        ("attack --model.pretrained x --model.edited y", "--data.names, --data.targets"),
        ("compare", "--model.pretrained, --data.names"),
        ("fuse", "--run"),
        ("merge", "files, --output"),
    ],
)
def test_what_is_required_is_named_as_it_is_typed(typed: str, left: str) -> None:
    with pytest.raises(SystemExit, match=f"error: give what is required: {left}$"):
        erase_main(typed.split())


def test_what_needs_no_library_is_refused_before_any(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"output_dir": str(tmp_path / "run")}))
    code = (
        "import sys; from mace_pl.cli import erase_main; sys.modules['gradio'] = None\ntry: erase_main(sys.argv[1:])\n"
        "except SystemExit as stop: print(stop.code)\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    for args, says in (
        (["fit", "--config", "a.yaml"], "output_dir: .* exists"),
        (["fit", f"--output_dir={tmp_path / 'run'}", "--model.rank", "1"], "output_dir: .* exists"),
        (["fit", "-c", "a.yaml", "--overwrite", "false"], "output_dir: .* exists"),
        (["studio", "--run", "run"], r'gradio is not installed. Run pip install "mace-pl\[studio\]"'),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert re.search(says, done.stdout) and not done.stderr
    refuse_taken(["--config", str(tmp_path / "a.yaml"), "--overwrite", "true"])  # is not refused
    refuse_taken(["--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path / "other")])


def test_the_help_names_the_program_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for called, name in (("/somewhere/bin/mace-erase", "mace-erase"), ("elsewhere/script.py", "erase.py")):
        monkeypatch.setattr(sys, "argv", [called])
        for args, start in (
            ([], "COMMAND"),
            (["--help"], "COMMAND"),
            (["fit", "-h"], "fit"),
            (["export", "-h"], "export"),
        ):
            erase_main(args)
            assert capsys.readouterr().out.startswith(f"usage: {name} {start} [options]")
        for command in ("cache", "merge"):
            with pytest.raises(SystemExit):
                erase_main([command, "--help.all"])
            shown = capsys.readouterr().out
            assert shown.startswith(f"usage: {name} {command} ") and shown.count("usage:") == 1
        with pytest.raises(SystemExit, match=rf"^{name} fuse: error: .* required"):
            erase_main(["fuse"])


def test_a_misspelt_command_names_the_nearest() -> None:
    with pytest.raises(SystemExit, match="The nearest that exists is fit"):
        erase_main(["fti"])


def test_the_console_commands_exist() -> None:
    assert callable(importlib.import_module("mace_pl.train_cli").train_main)


def test_the_defaults_in_python_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        erase_main(["fit", "--print_config"])
    command = yaml.safe_load(capsys.readouterr().out)
    python = {name: p.default for name, p in inspect.signature(erase).parameters.items() if p.default is not p.empty}
    assert python.pop("trainer") is None
    assert python == {name: command[name] for name in python}
