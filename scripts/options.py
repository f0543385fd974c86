"""Write docs/options.md: every option of every command, as ``--help`` prints it.

Run it as ``python scripts/options.py`` after an option has changed; a test says when that is due.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mace_pl.cli import erase_main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
COMMANDS = (
    *("fit", "export", "fuse", "cache", "merge", "inspect", "import-cache"),
    *("prompts", "predict", "test", "attack", "detect"),
)
#: options of the libraries, and those that the top of the page names once
NOT_OURS = (
    *("-h", "--help", "-c", "--config", "--print_config", "--trainer"),
    *("--ckpt_path", "--weights_only", "--verbose", "--return_predictions"),
)
HEAD = """# Options

<!-- made by python scripts/options.py; do not edit -->

All options of `python erase.py COMMAND`, with their defaults. Every command also takes `--config FILE`, a YAML file
with the same settings, which options on the command line override, and `--print_config`, which prints the configuration
that the other options make. `compare` takes the options of `test`, after two or more runs or pipelines. The commands
that compute (`fit`, `cache`, `predict`, `test`, `attack`) also take the options of
[Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-flags) as `--trainer.NAME`,
such as `--trainer.devices` and `--trainer.precision`.
"""


@dataclass
class Option:
    """An option of a command: its names, and what the help says."""

    name: str
    text: str = ""


@dataclass
class Group:
    """Options under one heading of the help."""

    title: str
    options: list[Option] = field(default_factory=list)


def printed_help(command: str) -> str:
    """What ``erase.py command --help`` prints, on lines of any length."""
    shown = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100000", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(shown),
        contextlib.suppress(SystemExit),
    ):
        erase_main([command, "--help"])
    return shown.getvalue()


def groups(text: str) -> Iterator[Group]:
    """The groups of a printed help, with their options."""
    group = Group("")
    for line in text.splitlines():
        option = re.match(r"  (-\S.*?)(?:  +(\S.*))?$", line)
        if option:
            group.options.append(Option(option[1], option[2] or ""))
        elif re.match(r"\S.*:$", line):
            yield group
            group = Group(line[:-1])
        elif group.options and line.startswith("   "):
            last = group.options[-1]
            last.text = f"{last.text} {line.strip()}".strip()
    yield group


def described(option: Option) -> str:
    """A row of the table: name, meaning and default; the type is left to the help."""
    name = re.split(r"[ ,]", option.name)[0]
    found = re.search(r"\s*\((required, )?type: .*?(?:, default: (.*?))?(?:, known subclasses: .*)?\)$", option.text)
    text, required, default = (option.text[: found.start()], *found.groups()) if found else (option.text, None, None)
    value = "required" if required else f"`{default}`" if default else ""
    cells = [cell.replace("|", "\\|") for cell in (f"`{name}`", text.replace("``", "`"), value)]
    return f"| {' | '.join(cells)} |"


def of_ours(group: Group) -> list[Option]:
    """The options of a group that are this project's, and more than a way to ask for help or for a file of options."""
    return [
        option
        for option in group.options
        if not option.name.startswith(NOT_OURS)
        and ".help" not in option.name.split()[0]
        and not re.fullmatch(r"--[\w.]+ CONFIG", option.name)
    ]


def section(command: str, text: str) -> str:
    """A command's part of the page."""
    parts = [f"## {command}"]
    for group in groups(text):
        options = of_ours(group)
        if options:
            title = group.title if group.title not in ("", "options") else "The command"
            parts.append(f"**{title.replace('``', '`')}**")
            parts.append("| option | what it is | default |\n|---|---|---|\n" + "\n".join(map(described, options)))
    return "\n\n".join(parts)


def page(commands: Sequence[str] = COMMANDS) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *(section(command, printed_help(command)) for command in commands)]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
