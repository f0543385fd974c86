"""Write docs/options.md and what ``--help`` prints at once, from the whole help that the parsers print.

Run it as ``python scripts/options.py`` after an option has changed; a test says when that is due.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import docstring_parser

from mace_pl import cli, methods
from mace_pl.cli import erase_main
from mace_pl.evaluation.convolutional import ConvolutionalJudge
from mace_pl.evaluation.faces import Faces

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "options.md"
HELP = ROOT / "mace_pl" / "commands" / "help"
WIDE = 120  # columns of a line of the help
COMMANDS = tuple(name for name in cli.COMMANDS if name != "compare")  # which takes the options of test
#: options of the libraries, and those that the top of the page names once
NOT_OURS = (
    *("-h", "--help", "-c", "--config", "--print_config", "--trainer"),
    *("--ckpt_path", "--weights_only", "--verbose", "--return_predictions"),
)
#: headings of the help, and the options under each
TOPICS = {
    "Model": r"--(model\.)?(pretrained|revision|variant|layout|edited|runs?|apply)",
    "Concepts": r"--(data\.)?(concepts|anchors|targets?|templates?|names|synonyms|descriptions|kept|preserved)",
    "Method and preservation": r"--model\.(method|harden|prior|domain|domain_\w+|pooled|beside|(refine|fuse)\..*)",
    "Hardening": r"--harden\..*",
    "LoRA training": r"--(model|data)\.(rank|lr|weight_decay|gradient_\w+|importance_sampling|squared_loss"
    r"|attend_padding|compile|steps_per_concept|concepts_per_batch|images_per_step)",
    "Prompts and captions": r"--data\.(file|column|limit|\w+_column|sources|member|tokens)",
    "Images and masks": r"--(model|data)\.(pictures|images|images_per_\w+|image_\w+|steps|guidance|scheduler|negative"
    r"|height|width|seeds|first_seed|batch_size|mask|segment\..*)",
    "Evaluation": r"--(model|data)\.(classifier|targets|names|judge|chosen_by|sentences|features|reference|kid_subset"
    r"|nearest|shown|ablation)",
    "Fusion": r"--(drop|weights|method|refine|fuse)",
    "Attacks": r"--(data\.(attacks|trials|trials_at_once)|model\.strengths.*)",
    "Search": r"--(tune|judge|confirm_by)",
    "Output and run": r"--((model\.)?(output|output_dir|overwrite|save_pipeline|export|classifier|report_seeds|format)"
    r"|seed_everything|dry_run|\w+_every_n_steps|model\.(save_every|seed)|seed|preset)",
}
OTHER = "Settings of the command"
#: options of one sort, which are one line of the help
FOLDED = {"--data.segment.": "networks that make masks and their thresholds, listed by --help.all"}
#: classes that an option names, whose settings are options behind it
CLASSES = {
    "--model.method": [getattr(methods, name) for name in methods.__all__ if name != "ClosedForm"],
    "--model.judge": [ConvolutionalJudge, Faces],
}
CLASSES_HEAD = """## Settings of classes

A class that an option names takes its settings behind it, as in `--model.method RECE --model.method.rounds 1`. A judge
is named by its whole path: `--model.judge mace_pl.evaluation.faces.Faces --model.judge.references people`.
"""
HEAD = """# Options

<!-- made by python scripts/options.py; do not edit -->

All options of `python erase.py COMMAND`, with their defaults. Every command also takes `--config FILE`, a YAML file
with the same settings, which options on the command line override, and `--print_config`, which prints the configuration
that the other options make. Settings of closed forms and judges are [at the end](#settings-of-classes). `compare`
takes the options of `test`, after two or more runs or pipelines. The commands that compute (`fit`, `cache`,
`predict`, `test`, `attack`) also take the options of
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


@functools.cache
def printed_help(command: str) -> str:
    """What ``erase.py command --help.all`` prints, on lines of any length."""
    shown = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100000", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(shown),
        contextlib.suppress(SystemExit),
    ):
        erase_main([command, "--help.all"])
    return shown.getvalue()


def groups(text: str) -> Iterator[Group]:
    """The groups of a printed help, with their options."""
    group = Group("")
    for line in text.splitlines():
        first = r"\S" if group.title == "positional arguments" else "-"
        option = re.match(rf"  ({first}.*?)(?:  +(\S.*))?$", line)
        if option:
            group.options.append(Option(option[1], option[2] or ""))
        elif re.match(r"\S.*:$", line):
            yield group
            group = Group(line[:-1])
        elif group.options and line.startswith("   "):
            last = group.options[-1]
            last.text = f"{last.text} {line.strip()}".strip()
    yield group


def parts(option: Option) -> tuple[str, str, str]:
    """Name, meaning and default of an option; the default is ``required`` where there must be a value."""
    name = re.split(r"[ ,]", option.name)[0]
    found = re.search(r"\s*\((required, )?type: .*?(?:, default: (.*?))?(?:, known subclasses: .*)?\)$", option.text)
    text, required, default = (option.text[: found.start()], *found.groups()) if found else (option.text, None, None)
    return name, text, "required" if required else default or ""


def described(option: Option) -> str:
    """A row of the table: name, meaning and default; the type is left to the help."""
    name, text, default = parts(option)
    value = default if default in ("", "required") else f"`{default}`"
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
            title = group.title if group.title not in ("", "options", "positional arguments") else "The command"
            parts.append(f"**{title.replace('``', '`')}**")
            parts.append("| option | what it is | default |\n|---|---|---|\n" + "\n".join(map(described, options)))
    return "\n\n".join(parts)


def classes() -> str:
    """The part of the page on the settings of classes, with their meaning and default."""
    rows = []
    for option, found in CLASSES.items():
        for owner in found:
            says = docstring_parser.parse(inspect.getdoc(owner) or "").params
            meanings = {one.arg_name: " ".join((one.description or "").split()) for one in says}
            for name, one in inspect.signature(owner).parameters.items():
                default = {"True": "true", "False": "false", "None": "null"}.get(str(one.default), str(one.default))
                value = "required" if one.default is one.empty else f"`{default}`"
                cells = f"`{owner.__name__}`", f"`{option}.{name}`", meanings[name].replace("``", "`"), value
                rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([CLASSES_HEAD, "| class | option | what it is | default |", "|---|---|---|---|", *rows])


def page(commands: Sequence[str] = COMMANDS) -> str:
    """The whole page."""
    sections = (section(command, printed_help(command)) for command in commands)
    return "\n\n".join([HEAD.strip(), *sections, classes()]) + "\n"


def topic_of(name: str) -> str:
    """The heading of the help under which an option stands."""
    return next((topic for topic, names in TOPICS.items() if re.fullmatch(names, name)), OTHER)


def line_of(option: Option) -> str:
    """An option on one line of the help, with its default."""
    name, text, default = parts(option)
    value = "" if default in ("", "null") else f" [{textwrap.shorten(default, 40, placeholder='…')}]"
    start = f"  {name:<33} "
    plain = text.replace("``", "").removesuffix(".")
    return start + textwrap.shorten(plain, WIDE - len(start) - len(value), placeholder=" …") + value


def folded(options: Sequence[Option]) -> list[Option]:
    """The options, those of one sort as one, where the first of them stands."""
    found: dict[str, Option] = {}
    for option in options:
        start = next((start for start in FOLDED if option.name.startswith(start)), None)
        one = option if start is None else Option(f"{start}NAME", FOLDED[start])
        found.setdefault(one.name, one)
    return list(found.values())


def short_help(command: str, text: str) -> str:
    """What ``erase.py command --help`` prints: the project's options by topic, each on one line."""
    lines = [f"usage: erase.py {command} [options]   behind each [its default]; in full: docs/options.md, --help.all"]
    options = folded([option for group in groups(text) for option in of_ours(group)])
    for topic in (OTHER, *TOPICS):
        found = [option for option in options if topic_of(parts(option)[0]) == topic]
        lines += [f"{topic}:", *map(line_of, found)] if found else []
    lines += [] if found else [f"{topic}:"]  # under it where it is the last topic
    lines += ["  --config FILE, --print_config     YAML file of these settings, what follows it wins; print them"]
    if "--trainer." in text:
        lines += ["  --trainer.NAME VALUE              options of Lightning's Trainer, listed by --help.all"]
    return "\n".join(lines) + "\n"


def help_pages() -> dict[str, str]:
    """What is printed by command."""
    found = {command: short_help(command, printed_help(command)) for command in COMMANDS}
    return found | {"compare": found["test"].replace("erase.py test [", "erase.py compare RUN_A RUN_B ... [")}


def main() -> None:
    """Write the page and the texts of the help."""
    PAGE.write_text(page(), encoding="utf-8")
    HELP.mkdir(exist_ok=True)
    for command, text in help_pages().items():
        (HELP / f"{command}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
