"""The command line of erasing: one table of commands; what a command needs is imported when it runs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.screen import show_anything

Words = list[str]
HELP = Path(__file__).parent / "commands" / "help"  # made by scripts/options.py, for the libraries take seconds


def erase_main(args: Words | None = None) -> None:
    """Edit a model: ``python erase.py fit --config ...``; other commands are listed by ``--help``."""
    words = sys.argv[1:] if args is None else list(args)
    command = words[0] if words else "--help"
    show_anything()
    if command in ("-h", "--help"):
        print(USAGE)
        return
    try:
        if command not in COMMANDS:
            raise UserError(f"there is no such command. {USAGE}")
        if words[1:] in (["-h"], ["--help"]):  # with other options, as a class of the user's, the parser answers
            print((HELP / f"{command}.txt").read_text(encoding="utf-8"), end="")
            return
        COMMANDS[command].run(words[1:])
    except UserError as error:
        sys.exit(f"erase.py {command}: error: {error}")
    except KeyboardInterrupt as stop:
        print(f"erase.py {command}: error: interrupted. {INTERRUPTED.get(command, '')}".rstrip(), file=sys.stderr)
        sys.exit(143 if str(stop) == "SIGTERM" else 130)  # as a shell says it


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        says: what it does, in a line.
        function: the function that does it, as ``module:name``; None for a command of the Trainer.
        trainer: the command of the Trainer.
        words: what people write, as the options that the parser reads.
        tells: whether the function returns what was written.
        logs: whether that is a folder of a run, with a log.
    """

    says: str
    function: str | None = None
    trainer: str = ""
    words: Callable[[Words], Words] = list
    tells: bool = True
    logs: bool = False

    def run(self, args: Words) -> None:
        """Import what the command needs, and run it."""
        words = self.words(args)
        with imported("mace_pl.commands.quiet:quiet_terminal")() as log:
            if self.function is None:
                imported("mace_pl.commands.lightning_commands:run")(self.trainer, words, log)
                return
            written = imported("mace_pl.commands.calling:call")(imported(self.function), words)
            if self.logs:
                log.open(written / "report")
            if self.tells and written is not None:
                print(f"Written to {written}")


def imported(name: str) -> Any:
    """The function ``module:name``."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def fuse_words(args: Words) -> Words:
    """``--drop ship,dog`` and ``--weights ship=0.5,dog=1`` as people write them, to the lists that the parser reads."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for i, option in enumerate(words[:-1]):
        value = words[i + 1]
        if option == "--drop" and not value.startswith("["):
            words[i + 1] = json.dumps([name.strip() for name in value.split(",")])
        elif option == "--weights" and not value.startswith("{"):
            pairs = [pair.rsplit("=", 1) for pair in value.split(",")]
            try:
                words[i + 1] = json.dumps({name.strip(): float(strength) for name, strength in pairs})
            except ValueError as error:
                raise UserError(f"weights={value} must be target=strength pairs, as in ship=0.5,dog=1.") from error
    return words


def file_words(option: str, many: bool = False) -> Callable[[Words], Words]:
    """The first word, or with ``many`` all words before the first option, as the value of ``option``."""

    def found(args: Words) -> Words:
        end = next((i for i, word in enumerate(args) if word.startswith("-")), len(args)) if many else 1
        if not args or args[0].startswith("-"):
            return args
        return [option, json.dumps(args[:end]) if many else args[0], *args[end:]]

    return found


def compare_words(args: Words) -> Words:
    """``RUN_A RUN_B --config …`` to options of ``test``; the runs go behind the configuration."""
    runs = args[: next((i for i, word in enumerate(args) if word.startswith("-")), len(args))]
    if len(runs) < 2:
        raise UserError("give at least two runs or pipelines first, as in compare RUN_A RUN_B --config …")
    return [*args[len(runs) :], "--model.runs", json.dumps(runs)]


COMMANDS = {
    "fit": Command(
        "erase concepts from a model: prepare images, refine, train a LoRA per concept, fuse, export", trainer="fit"
    ),
    "cache": Command("sum the statistics of captions that an edit preserves", trainer="cache"),
    "predict": Command("generate images of prompts by any model, on any number of devices", trainer="predict"),
    "test": Command("score an edited model beside its original", trainer="test"),
    "compare": Command("several runs or pipelines in one table and one page", trainer="test", words=compare_words),
    "attack": Command(
        "try to bring erased targets back: hidden prompts, and tokens optimised against the edit", trainer="attack"
    ),
    "detect": Command(
        "count explicit content in folders of images (extra nudenet)",
        "mace_pl.commands.detect:detect",
        words=file_words("--folders", many=True),
    ),
    "fuse": Command(
        "fuse a finished run again, without some concepts or with other weights, without training",
        "mace_pl.commands.fuse:fuse_run",
        words=fuse_words,
        logs=True,
    ),
    "export": Command(
        "write a finished run in another format: pipeline, refined, edit, lora, single_file, unet ...",
        "mace_pl.commands.export:export_run",
    ),
    "prompts": Command(
        "let a language model write prompts of the targets, into a file for data.templates",
        "mace_pl.commands.prompts:write_prompts",
    ),
    "merge": Command(
        "add statistics of captions that were made apart",
        "mace_pl.commands.merge:merge_statistics",
        words=file_words("--files", many=True),
    ),
    "inspect": Command(
        "print what statistics were made from, and their spectrum",
        "mace_pl.commands.inspect:inspect_statistics",
        words=file_words("--file"),
        tells=False,
    ),
    "import-cache": Command(
        "read a cache of the published layout",
        "mace_pl.commands.import_cache:import_cache",
        words=file_words("--cache"),
    ),
}
INTERRUPTED = {
    "fit": "No edit is written. The same command resumes.",
    "cache": "No statistics are written. The same command resumes.",
    "predict": "The same command generates what is missing.",
    "test": "No scores are written.",
    "compare": "No scores are written.",
    "attack": "No scores are written.",
}
USAGE = "\n".join(
    [
        "usage: erase.py COMMAND [options]   (erase.py COMMAND --help explains each)",
        "",
        *(f"  {name:<12} {command.says}" for name, command in COMMANDS.items()),
        "",
    ]
)
