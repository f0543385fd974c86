"""The command line of erasing: Lightning's own, with our models and data."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, auto_cli
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from mace_pl.callbacks.before_after import BeforeAfter
from mace_pl.callbacks.caption_bar import CaptionBar
from mace_pl.callbacks.lora_checkpoint import LoRACheckpoint
from mace_pl.callbacks.progress import StageProgress
from mace_pl.callbacks.write_run import WriteRun
from mace_pl.commands.command_line import CommandLine, explained, interrupts
from mace_pl.commands.detect import detect
from mace_pl.commands.export import export_run
from mace_pl.commands.fuse import fuse_run
from mace_pl.commands.import_cache import import_cache
from mace_pl.commands.inspect import inspect_statistics
from mace_pl.commands.merge import merge_statistics
from mace_pl.commands.parsing import CommandParser, check_configs, show_anything
from mace_pl.commands.prompts import write_prompts
from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.data.captions import Captions
from mace_pl.data.concepts import ConceptData
from mace_pl.data.evaluation_prompts import EvaluationPrompts
from mace_pl.data.prompts import Prompts
from mace_pl.errors import UserError
from mace_pl.files.paths import with_bundled
from mace_pl.modules.attack import Attack
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.modules.evaluation import ErasureScores
from mace_pl.modules.sampler import Sampler
from mace_pl.training.trainer import MaceTrainer

CHECKPOINT = ("ckpt_path", "weights_only")  # of Lightning; nothing here reads one
INTERRUPTED = {
    "fit": "No edit is written. The same command resumes.",
    "cache": "No statistics are written. The same command resumes.",
    "predict": "The same command draws what is missing.",
    "test": "No scores are written.",
    "attack": "No scores are written.",
}
USAGE = """usage: erase.py COMMAND [options]   (erase.py COMMAND --help explains each)

  fit     erase concepts from a model: prepare pictures, refine, train a LoRA per concept, fuse, export
  cache   sum the statistics of captions that an edit preserves
  predict draw pictures of prompts by any model, on any number of devices
  test    score an edited model beside its original
  compare several runs or pipelines in one table and one page
  attack  try to bring erased targets back: hidden prompts, and tokens optimised against the edit
  detect  count explicit content in folders of pictures (extra nudenet)
  fuse    fuse a finished run again, without some concepts or with other weights, without training
  export  write a finished run in another format: pipeline, refined, edit, lora, single_file, unet ...
  prompts let a language model write prompts of the targets, into a file for data.templates
  merge   add statistics of captions that were made apart
  inspect print what statistics were made from, and their spectrum
  import-cache   read a cache of the published layout
"""


class _FitCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", *CHECKPOINT}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output_dir",
            type=str | None,
            default=None,
            help="folder of the edit; null: checkpoints/erased/ and the name of the last --config, or run",
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="replace output_dir where it exists")
        parser.add_argument("--save_pipeline", type=bool, default=True, help="write the whole diffusers pipeline too")
        parser.add_argument(
            "--export",
            type=list[str] | None,
            default=None,
            help="pipeline, lora, lora_diffusers, lora_peft, single_file, unet; the form of the base model when null",
        )
        parser.add_argument(
            "--kept", type=list[str], default=[], help="names that stay, shown and scored in the report"
        )
        parser.add_argument("--classifier", type=str | None, default=None, help="folder of a CLIPModel that scores")
        parser.add_argument("--report_seeds", type=int, default=1, help="pictures per name in the report's scores")
        parser.add_argument(
            "--keep_every_n_steps", type=int, default=50, help="how often a concept in training is kept on disk"
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.set_defaults(
            {
                "trainer.max_epochs": 1,
                "trainer.logger": False,
                "trainer.enable_checkpointing": False,
                "trainer.log_every_n_steps": 1,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Name the output after the last configuration, unless a setting names it."""
        if self.settings["output_dir"] is None:
            files = [Path(str(file)).stem for file in self.settings.get("config") or []]
            self.settings["output_dir"] = f"checkpoints/erased/{files[-1] if files else 'run'}"

    def progress_bar(self) -> ProgressBar:
        """A bar that names stage and concepts."""
        return StageProgress(leave=True)

    def before_fit(self) -> None:
        config = self.settings
        plain = yaml.safe_load(self.command_parser.dump(config, skip_none=False))
        plain.pop("config", None)
        seen = BeforeAfter(config["kept"], config["classifier"], config["report_seeds"])
        names = ("output_dir", "overwrite", "save_pipeline", "export")
        self.run = WriteRun(seen=seen, config=plain, **{name: config[name] for name in names})
        checkpoint = LoRACheckpoint(config["output_dir"], config["keep_every_n_steps"])
        self.trainer.callbacks += [seen, self.run, checkpoint]  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Refuse to end as if all was well where nothing was written, as after a callback that ends the run early.

        Raises:
            UserError: no edit was written.
        """
        if self.trainer.is_global_zero and not self.run.written and not self.trainer.interrupted:
            raise UserError("trainer.callbacks ended the run before the edit was written. Leave such callbacks out.")


class _TestCLI(CommandLine):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"test": {"model", "dataloaders", "datamodule", *CHECKPOINT}}


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


def _fuse_args(args: list[str]) -> list[str]:
    """``--drop ship,dog`` and ``--weights ship=0.5,dog=1`` as people write them, to the lists that the parser reads."""
    found = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for i, option in enumerate(found[:-1]):
        value = found[i + 1]
        if option == "--drop" and not value.startswith("["):
            found[i + 1] = json.dumps([name.strip() for name in value.split(",")])
        elif option == "--weights" and not value.startswith("{"):
            pairs = [pair.rsplit("=", 1) for pair in value.split(",")]
            try:
                found[i + 1] = json.dumps({name.strip(): float(degree) for name, degree in pairs})
            except ValueError as error:
                raise UserError(f"weights={value} must be target=degree pairs, as in ship=0.5,dog=1.") from error
    return found


def _file_args(args: list[str], option: str, many: bool = False) -> list[str]:
    """The first word, or with ``many`` all words before the first option, as the value of ``option``."""
    end = next((i for i, word in enumerate(args) if word.startswith("-")), len(args)) if many else 1
    if not args or args[0].startswith("-"):
        return args
    return [option, json.dumps(args[:end]) if many else args[0], *args[end:]]


def _compare_args(args: list[str]) -> list[str]:
    """``RUN_A RUN_B --config …`` to options of ``test``; the runs go behind the configuration."""
    runs = args[: next((i for i, word in enumerate(args) if word.startswith("-")), len(args))]
    if len(runs) < 2:
        raise UserError("give at least two runs or pipelines first, as in compare RUN_A RUN_B --config …")
    return [*args[len(runs) :], "--model.runs", json.dumps(runs)]


def erase_main(args: list[str] | None = None) -> None:
    """Edit a model: ``python erase.py fit --config ...``; other commands are listed by ``--help``."""
    words = sys.argv[1:] if args is None else list(args)
    command = words[0] if words else "--help"
    show_anything()
    if command in ("-h", "--help"):
        print(USAGE)
        return
    try:
        _run(command, words[1:])
    except UserError as error:
        sys.exit(f"erase.py {command}: error: {error}")
    except KeyboardInterrupt as stop:
        print(f"erase.py {command}: error: interrupted. {INTERRUPTED.get(command, '')}".rstrip(), file=sys.stderr)
        sys.exit(143 if str(stop) == "SIGTERM" else 130)  # as a shell says it


def fit_with(config: dict[str, Any]) -> None:
    """Run ``fit`` with a configuration given as a dict."""
    _lightning(_FitCLI, ConceptErasure, ConceptData, {"subcommand": "fit", "fit": config})


def _run(command: str, rest: list[str]) -> None:
    if command == "fit":
        _lightning(_FitCLI, ConceptErasure, ConceptData, ["fit", *rest])
    elif command == "cache":
        _lightning(_CacheCLI, PromptStatistics, Captions, ["cache", *rest])
    elif command == "predict":
        _lightning(_PredictCLI, Sampler, Prompts, ["predict", *rest])
    elif command == "test":
        _lightning(_TestCLI, ErasureScores, EvaluationPrompts, ["test", *rest])
    elif command == "compare":
        _lightning(_TestCLI, ErasureScores, EvaluationPrompts, ["test", *_compare_args(rest)])
    elif command == "attack":
        _lightning(_AttackCLI, Attack, AttackPrompts, ["attack", *rest])
    elif command == "detect":
        print(f"Written to {_call(detect, _file_args(rest, '--folders', True))}")
    elif command == "fuse":
        print(f"Written to {_call(fuse_run, _fuse_args(rest))}")
    elif command == "export":
        print(f"Written to {_call(export_run, rest)}")
    elif command == "prompts":
        print(f"Written to {_call(write_prompts, rest)}")
    elif command == "merge":
        print(f"Written to {_call(merge_statistics, _file_args(rest, '--files', True))}")
    elif command == "inspect":
        _call(inspect_statistics, _file_args(rest, "--file"))
    elif command == "import-cache":
        print(f"Written to {_call(import_cache, _file_args(rest, '--cache'))}")
    else:
        raise UserError(f"there is no such command. {USAGE}")


def _call(function: Callable[..., Any], args: list[str]) -> Any:
    """Run a function with options named after its parameters.

    Raises:
        UserError: an option that does not exist, or a value of another type.
    """
    try:
        found = with_bundled(args)
        check_configs(found)
        return auto_cli(function, args=found, as_positional=False, exit_on_error=False, parser_class=CommandParser)
    except ArgumentError as error:
        raise UserError(explained(error, inspect.signature(function).parameters)) from error


def _lightning(cli: type[CommandLine], model: Any, data: Any, args: ArgsType) -> None:
    # args are ours whatever sys.argv holds; the schedule is an iterable that no worker process duplicates
    show_anything()
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__`")
    with interrupts():
        cli(model, data, MaceTrainer, args)
