"""The command line of erasing: Lightning's own, with our models and data."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mace_pl.callbacks.caption_bar import CaptionBar
from mace_pl.callbacks.export import Export
from mace_pl.callbacks.progress import StageProgress
from mace_pl.callbacks.resume import Resume
from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.data.captions import Captions
from mace_pl.data.concepts import ConceptData
from mace_pl.data.evaluation import EvaluationPrompts
from mace_pl.data.prompts import Prompts
from mace_pl.detecting import detect
from mace_pl.export.run import export_run
from mace_pl.fusing import fuse_run
from mace_pl.importing import import_cache
from mace_pl.inspecting import inspect_statistics
from mace_pl.merging import merge_statistics
from mace_pl.modules.attack import Attack
from mace_pl.modules.mace import Mace
from mace_pl.modules.sampler import Sampler
from mace_pl.modules.scores import ErasureScores
from mace_pl.modules.statistics import PromptStatistics
from mace_pl.paths import with_bundled
from mace_pl.prompting import write_prompts
from mace_pl.trainer import MaceTrainer

USAGE = """usage: erase.py COMMAND [options]   (erase.py COMMAND --help explains each)

  fit     erase concepts from a model: prepare pictures, refine, train a LoRA per concept, fuse, export
  cache   sum the statistics of captions that an edit preserves
  predict draw pictures of prompts by any model, on any number of devices
  test    score an edited model beside its original
  compare several runs or pipelines in one table and one page
  attack  try to bring erased targets back: hidden prompts, and tokens optimised against the edit
  detect  count explicit content in folders of pictures (extra nudenet)
  fuse    fuse a finished run again, without some concepts or with other weights, without training
  export  write a finished run in another format: pipeline, refined, edit, lora or single_file
  prompts let a language model write prompts of the targets, into a file for data.templates
  merge   add statistics of captions that were made apart
  inspect print what statistics were made from, and their spectrum
  import-cache   read a cache of the published layout
"""


class _FitCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output_dir", type=str, default="checkpoints/erased/run", help="folder of the edit")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace output_dir where it exists")
        parser.add_argument("--save_pipeline", type=bool, default=True, help="write the whole diffusers pipeline too")
        parser.add_argument(
            "--export",
            type=list[str] | None,
            default=None,
            help="formats: pipeline, lora, single_file; that of the base model when null",
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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with a progress bar that names stage and concepts."""
        trainer = super().instantiate_trainer(**kwargs)
        bar = trainer.progress_bar_callback
        if bar is not None:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks[callbacks.index(bar)] = StageProgress(leave=True)
        return trainer

    def before_fit(self) -> None:
        config = self.config["fit"]
        plain = yaml.safe_load(self._parser("fit").dump(config, skip_none=False))
        plain.pop("config", None)
        names = ("output_dir", "overwrite", "save_pipeline", "export", "kept", "classifier", "report_seeds")
        export = Export(**{name: config[name] for name in names}, config=plain)
        resume = Resume(config["output_dir"], config["keep_every_n_steps"])
        self.trainer.callbacks += [export, resume]  # type: ignore[attr-defined]


class _TestCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"test": {"model", "dataloaders", "datamodule"}}


class _PredictCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"predict": {"model", "dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.logger": False})


class _AttackCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"attack": {"model", "dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.logger": False})


class _CacheCLI(LightningCLI):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"cache": {"model", "dataloaders", "datamodule"}}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with a progress bar that counts captions."""
        trainer = super().instantiate_trainer(**kwargs)
        bar = trainer.progress_bar_callback
        if bar is not None:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks[callbacks.index(bar)] = CaptionBar()
        return trainer


def _fit_args(args: list[str]) -> list[str]:
    """Name the output after the last configuration, unless the command names it."""
    configs = [Path(a.split("=", 1)[1]) for a in args if a.startswith("--config=")]
    configs += [Path(args[i + 1]) for i, a in enumerate(args[:-1]) if a == "--config"]
    if any(a.split("=")[0] == "--output_dir" for a in args) or not configs:
        return args
    if any("output_dir" in (yaml.safe_load(c.read_text(encoding="utf-8")) or {}) for c in configs if c.is_file()):
        return args
    return [*args, "--output_dir", f"checkpoints/erased/{configs[-1].stem}"]


def _fuse_args(args: list[str]) -> list[str]:
    """``--drop ship,dog`` and ``--weights ship=0.5,dog=1`` as people write them, to the lists that the parser reads."""
    found = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for i, option in enumerate(found[:-1]):
        value = found[i + 1]
        if option == "--drop" and not value.startswith("["):
            found[i + 1] = json.dumps([name.strip() for name in value.split(",")])
        elif option == "--weights" and not value.startswith("{"):
            pairs = [pair.rsplit("=", 1) for pair in value.split(",")]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError(f"weights={value} must be target=degree pairs, as in ship=0.5,dog=1.")
            found[i + 1] = json.dumps({name.strip(): float(degree) for name, degree in pairs})
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
        raise ValueError("give at least two runs or pipelines first, as in compare RUN_A RUN_B --config …")
    return [*args[len(runs) :], "--model.runs", json.dumps(runs)]


def erase_main(args: list[str] | None = None) -> None:
    """Edit a model: ``python erase.py fit --config ...``; other commands are listed by ``--help``."""
    words = sys.argv[1:] if args is None else list(args)
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return
    try:
        _run(command, with_bundled(words[1:]))
    except ValueError as error:
        sys.exit(f"erase.py {command}: error: {error}")


def fit_with(config: dict[str, Any]) -> None:
    """Run ``fit`` with a configuration given as a dict."""
    _lightning(_FitCLI, Mace, ConceptData, {"subcommand": "fit", "fit": config})


def _run(command: str, rest: list[str]) -> None:
    if command == "fit":
        _lightning(_FitCLI, Mace, ConceptData, ["fit", *_fit_args(rest)])
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
        print(f"Written to {auto_cli(detect, args=_file_args(rest, '--folders', True), as_positional=False)}")
    elif command == "fuse":
        print(f"Written to {auto_cli(fuse_run, args=_fuse_args(rest), as_positional=False)}")
    elif command == "export":
        print(f"Written to {auto_cli(export_run, args=rest, as_positional=False)}")
    elif command == "prompts":
        print(f"Written to {auto_cli(write_prompts, args=rest, as_positional=False)}")
    elif command == "merge":
        print(f"Written to {auto_cli(merge_statistics, args=_file_args(rest, '--files', True), as_positional=False)}")
    elif command == "inspect":
        auto_cli(inspect_statistics, args=_file_args(rest, "--file"), as_positional=False)
    elif command == "import-cache":
        print(f"Written to {auto_cli(import_cache, args=_file_args(rest, '--cache'), as_positional=False)}")
    else:
        raise ValueError(f"there is no such command. {USAGE}")


def _lightning(cli: type[LightningCLI], model: Any, data: Any, args: ArgsType) -> LightningCLI:
    # args are ours whatever sys.argv holds; the schedule is an iterable that no worker process duplicates
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__`")
    return cli(
        model,
        data,
        trainer_class=MaceTrainer,
        auto_configure_optimizers=False,
        seed_everything_default=2024,
        save_config_callback=None,
        args=args,
    )
