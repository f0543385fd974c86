"""The commands that run under a Trainer: Lightning's command line with our models and data."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from mace_pl.callbacks.caption_bar import CaptionBar
from mace_pl.commands.command_line import CHECKPOINT, CommandLine, interrupts
from mace_pl.commands.fit_command import FitCLI
from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.data.captions import Captions
from mace_pl.data.concepts import ConceptData
from mace_pl.data.evaluation_prompts import EvaluationPrompts
from mace_pl.data.prompts import Prompts
from mace_pl.errors import UserError
from mace_pl.files.run_log import RunLog
from mace_pl.files.screen import program
from mace_pl.modules.attack import Attack
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.modules.evaluation import ErasureScores
from mace_pl.modules.sampler import Sampler
from mace_pl.run import Run
from mace_pl.training.trainer import MaceTrainer


class _TestCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"test": {"model", "dataloaders", "datamodule", *CHECKPOINT}}


class _CompareCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return _TestCLI.subcommands()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("runs", nargs="*", default=[], help="runs and pipelines, two or more")
        parser.link_arguments("runs", "model.runs")
        parser.usage = f"{program()} compare RUN_A RUN_B ... [--config FILE] [options]"

    def before_instantiate_classes(self) -> None:
        """Two at least."""
        if len(self.settings["runs"]) < 2:
            raise UserError("give at least two runs or pipelines first, as in compare RUN_A RUN_B --config …")


class _PredictCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"predict": {"model", "dataloaders", "datamodule", *CHECKPOINT}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.logger": False})


class _AttackCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"attack": {"model", "dataloaders", "datamodule", *CHECKPOINT}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.logger": False})


class _CacheCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"cache": {"model", "dataloaders", "datamodule", *CHECKPOINT}}

    def progress_bar(self) -> ProgressBar:
        """A bar that counts captions."""
        return CaptionBar()


#: the command line, the model and the data of each command
PARTS: dict[str, tuple[type[CommandLine], Any, Any]] = {
    "fit": (FitCLI, ConceptErasure, ConceptData),
    "cache": (_CacheCLI, PromptStatistics, Captions),
    "predict": (_PredictCLI, Sampler, Prompts),
    "test": (_TestCLI, ErasureScores, EvaluationPrompts),
    "compare": (_CompareCLI, ErasureScores, EvaluationPrompts),
    "attack": (_AttackCLI, Attack, AttackPrompts),
}


def fit(settings: dict[str, Any]) -> Run:
    """``fit`` with these settings; returns the run, on each rank.

    Raises:
        UserError: a setting that cannot be used, or no edit was written.
        KeyboardInterrupt: the run was interrupted.
    """
    cli = run("fit", settings)
    assert isinstance(cli, FitCLI) and cli.written is not None
    return cli.written


def run(command: str, args: ArgsType, log: RunLog | None = None) -> CommandLine:
    """Run a command, and return its command line with what it has left.

    Args:
        command: one of :data:`PARTS`.
        args: its options, as words or as a mapping.
        log: goes into the folder that the command writes.

    Raises:
        UserError: a setting that cannot be used.
        KeyboardInterrupt: the run was interrupted.
    """
    # args are ours whatever sys.argv holds; the schedule is an iterable that no worker process duplicates
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__`")
    cli, model, data = PARTS[command]
    name = next(iter(cli.subcommands()))
    given = [name, *args] if isinstance(args, list) else {"subcommand": name, name: args}
    with interrupts():
        return cli(model, data, MaceTrainer, given, log)
