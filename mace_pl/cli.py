"""The command line of erasing: one table of commands; what a command needs is imported when it runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError, install, nearest
from mace_pl.files.screen import program, show_anything
from mace_pl.files.taken import only_asks, refuse_taken

Words = list[str]
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # where a launcher says that a process is not the first
HELP = Path(__file__).parent / "commands" / "help"  # made by scripts/options.py, for the libraries take seconds


def erase_main(args: Words | None = None) -> None:
    """Edit a model: ``python erase.py fit --config ...``; other commands are listed by ``--help``."""
    words = sys.argv[1:] if args is None else list(args)
    command = words[0] if words else "--help"
    show_anything()
    if command in ("-h", "--help"):
        print(as_called(USAGE))
        return
    try:
        if command not in COMMANDS:
            raise UserError(f"there is no such command.{nearest(command, COMMANDS)} {as_called(USAGE)}")
        if words[1:] in (["-h"], ["--help"]):  # with other options, as a class of the user's, the parser answers
            print(as_called((HELP / f"{command}.txt").read_text(encoding="utf-8")), end="")
            return
        COMMANDS[command].run(command, words[1:])
    except UserError as error:
        sys.exit(f"{program()} {command}: error: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for a class's sake
            raise
        said = str(error).partition(". ")[0]
        sys.exit(
            f"{program()} {command}: error: the GPU has too little memory left ({said}). Ask for fewer images or "
            "concepts at once (--help names the options), end other programs that use it, or take a larger card; fit "
            "has --model.gradient_checkpointing true and --trainer.precision bf16-mixed too."
        )
    except KeyboardInterrupt as stop:
        told = f"{program()} {command}: error: interrupted. {COMMANDS[command].interrupted}"
        print(told.rstrip(), file=sys.stderr)
        sys.exit(143 if str(stop) == "SIGTERM" else 130)  # as a shell says it


def as_called(text: str) -> str:
    """A help with the name by which the program was called."""
    return text.replace("erase.py", program())


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        says: what it does, in a line.
        function: the function that does it, as ``module:name``; None for a command of the Trainer.
        trainer: the command of the Trainer.
        then: what is done with what the Trainer has left, as ``module:name``.
        words: the parameter that is given as plain words before the options.
        tells: whether the function returns what was written.
        logs: whether that is a folder of a run, with a log.
        interrupted: what is said when it is interrupted.
        package: of an extra, without which it does nothing.
        extra: its name.
    """

    says: str
    function: str | None = None
    trainer: str = ""
    then: str = ""
    words: str = ""
    tells: bool = True
    logs: bool = False
    interrupted: str = ""
    package: str = ""
    extra: str = ""

    def run(self, name: str, args: Words) -> None:
        """Import what the command needs, which takes seconds, and run it.

        Raises:
            UserError: what is wrong by the words alone, before anything is imported, or what the command refuses.
        """
        if self.package and not only_asks(args) and importlib.util.find_spec(self.package) is None:
            raise UserError(f"the package {self.package} is not installed. {install(self.extra)}")
        if self.trainer == "fit":
            refuse_taken(args)
        first = {os.environ.get(rank, "0") for rank in RANKS} == {"0"}
        if not only_asks(args) and first:
            print(f"{name}: loading …", file=sys.stderr, flush=True)
        with imported("mace_pl.commands.quiet:quiet_terminal")() as log:
            if self.function is None:
                left = imported("mace_pl.commands.lightning_commands:run")(self.trainer, args, log)
                if self.then:
                    imported(self.then)(left)
                return
            written = imported("mace_pl.commands.calling:call")(name, imported(self.function), args, self.words)
            if self.logs:
                log.open(written / "report", int(os.environ.get("RANK", "0")))
            if self.tells and written is not None and first:
                print(f"Written to {written}")
            if self.logs and first:
                print(*imported("mace_pl.callbacks.write_run:next_steps")(written), sep="\n")


def imported(name: str) -> Any:
    """The function ``module:name``."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


COMMANDS = {
    "fit": Command(
        "erase concepts from a model: prepare images, refine, train a LoRA per concept, fuse, export",
        trainer="fit",
        then="mace_pl.commands.fit_tune:search",
        interrupted="No edit is written. The same command resumes.",
    ),
    "cache": Command(
        "sum the statistics of captions that an edit preserves",
        trainer="cache",
        interrupted="No statistics are written. The same command resumes.",
    ),
    "predict": Command(
        "generate images of prompts by any model, on any number of devices",
        trainer="predict",
        interrupted="The same command generates what is missing.",
    ),
    "test": Command("score an edited model beside its original", trainer="test", interrupted="No scores are written."),
    "compare": Command(
        "several runs or pipelines in one table and one page", trainer="compare", interrupted="No scores are written."
    ),
    "attack": Command(
        "try to bring erased targets back: hidden prompts, and tokens optimised against the edit",
        trainer="attack",
        interrupted="No scores are written.",
    ),
    "detect": Command(
        "count explicit content in folders of images (extra nudenet)",
        "mace_pl.commands.detect:detect",
        words="folders",
        package="nudenet",
        extra="nudenet",
    ),
    "fuse": Command(
        "fuse a finished run again, without some concepts or with other weights, without training",
        "mace_pl.commands.fuse:fuse_run",
        logs=True,
    ),
    "harden": Command(
        "harden a finished run: train against free tokens that bring its targets back",
        "mace_pl.commands.harden:harden_run",
        logs=True,
        interrupted="No run is written. The same command resumes.",
    ),
    "tune": Command(
        "search the weights of a finished run's closed forms and its strengths, and confirm what is found (extra tune)",
        "mace_pl.commands.tune:tune_run",
        interrupted="No run is written. The same command continues the search.",
        package="optuna",
        extra="tune",
    ),
    "add": Command(
        "add concepts to a run, which becomes a library: only these are trained, all are fused again",
        "mace_pl.commands.library:add_concepts",
        interrupted="The library is as it was. The same command resumes.",
    ),
    "remove": Command(
        "take concepts out of a library",
        "mace_pl.commands.library:remove_concepts",
        interrupted="The library is as it was.",
    ),
    "replace": Command(
        "make concepts of a library anew, with other anchors, prompts or images",
        "mace_pl.commands.library:replace_concepts",
        interrupted="The library is as it was. The same command resumes.",
    ),
    "undo": Command("bring an earlier state of a library back, to the bit", "mace_pl.commands.library:undo_change"),
    "log": Command(
        "print what was done to a library, and its entries", "mace_pl.commands.library:show_log", tells=False
    ),
    "studio": Command(
        "move the strengths of a run's concepts on a page in the browser, and see the images follow (extra studio)",
        "mace_pl.studio.serve:studio",
        tells=False,
        package="gradio",
        extra="studio",
    ),
    "export": Command(
        "write a finished run in another format: pipeline, refined, edit, lora, single_file, unet ...",
        "mace_pl.commands.export:export_run",
    ),
    "push": Command(
        "publish a finished run on the Hugging Face Hub: its pipeline or LoRA, with card and images",
        "mace_pl.commands.push:push_run",
    ),
    "prompts": Command(
        "prompts for data.templates: written by a language model, or learnt from captions",
        "mace_pl.commands.prompts:write_prompts",
    ),
    "merge": Command(
        "add statistics of captions that were made apart",
        "mace_pl.commands.merge:merge_statistics",
        words="files",
    ),
    "inspect": Command(
        "print what statistics were made from, and their spectrum",
        "mace_pl.commands.inspect:inspect_statistics",
        words="file",
        tells=False,
    ),
    "import-cache": Command(
        "read a cache of the published layout",
        "mace_pl.commands.import_cache:import_cache",
        words="cache",
    ),
}

USAGE = "\n".join(
    [
        "usage: erase.py COMMAND [options]   (erase.py COMMAND --help explains each)",
        "",
        *(f"  {name:<12} {command.says}" for name, command in COMMANDS.items()),
        "",
    ]
)
