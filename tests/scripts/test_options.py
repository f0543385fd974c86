"""The page of options is what the commands print."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mace_pl import methods
from mace_pl.cli import COMMANDS, USAGE, erase_main

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


def test_the_page_has_the_settings_of_the_closed_forms(script: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `--model\.method\.(\w+)` \| .+ \| (.+) \|$", script.classes(), re.MULTILINE)
    assert ("RECE", "rounds", "`3`") in rows and ("Mace", "refinement", "`null`") in rows
    for name in (name for name in methods.__all__ if name != "ClosedForm"):
        own = [setting for owner, setting, _ in rows if owner == name]
        assert own == list(inspect.signature(getattr(methods, name)).parameters)


def test_the_help_is_current(script: ModuleType) -> None:
    found = {file.stem: file.read_text(encoding="utf-8") for file in script.HELP.iterdir()}
    assert set(found) == set(COMMANDS)
    assert script.help_pages() == found, "run python scripts/options.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_every_option_on_a_screen_and_a_half(script: ModuleType, command: str) -> None:
    lines = (script.HELP / f"{command}.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 75 and max(map(len, lines)) <= 120
    sections = re.split(r"^## (\S+)$", script.PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    page = dict(zip(sections[1::2], sections[2::2], strict=True))["test" if command == "compare" else command]
    shown = {line.split()[0] for line in lines if line.startswith("  --")}
    listed = set(re.findall(r"^\| `(--\S+)`", page, re.MULTILINE))
    for start in script.FOLDED:
        own = {name for name in listed if name.startswith(start)}
        listed = listed - own | ({f"{start}NAME"} if own else set())
    assert shown - {"--config", "--print_config", "--trainer.NAME"} == listed


def test_the_help_is_printed_without_libraries(script: ModuleType) -> None:
    code = (
        "import sys; from mace_pl.cli import erase_main; erase_main(['fit', '--help']); "
        "print(sorted({'torch', 'lightning', 'diffusers', 'transformers', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (script.HELP / "fit.txt").read_text(encoding="utf-8") + "[]\n"


def test_the_help_of_a_class_is_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        erase_main(["fit", "--model.rank", "2", "--help"])
    assert stop.value.code == 0
    assert "--trainer.devices" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        erase_main(["test", "--model.judge.help", "mace_pl.evaluation.convolutional.ConvolutionalJudge"])
    assert "ConvolutionalJudge" in capsys.readouterr().out


def test_the_whole_help_has_the_trainers_options_last(script: ModuleType) -> None:
    titles = [group.title for group in script.groups(script.printed_help("fit")) if script.of_ours(group)]
    text = script.printed_help("fit")
    assert all(text.index(f"{title}:") < text.index("--trainer.accelerator ") for title in titles)


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
