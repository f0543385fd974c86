"""Command lines: Lightning's own, with our models and data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mace_pl.callbacks.export import Export
from mace_pl.data.captions import Captions
from mace_pl.data.concepts import ConceptData
from mace_pl.fusing import fuse_run
from mace_pl.modules.mace import Mace
from mace_pl.modules.statistics import PromptStatistics
from mace_pl.paths import resolve
from mace_pl.trainer import MaceTrainer

USAGE = """usage: erase.py COMMAND [options]   (erase.py COMMAND --help explains each)

  fit     erase concepts from a model: prepare pictures, refine, train a LoRA per concept, fuse, export
  cache   sum the statistics of captions that an edit preserves
  fuse    fuse a finished run again, without some concepts or with other weights, without training
"""


class _SingleCommand(LightningCLI):
    """A LightningCLI with one subcommand."""

    command = "fit"

    @classmethod
    def only(cls, command: str) -> dict[str, set[str]]:
        return {command: {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}}


class _FitCLI(_SingleCommand):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return _SingleCommand.only("fit")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output_dir", type=str, default="checkpoints/erased/run", help="folder of the edit")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace output_dir where it exists")
        parser.add_argument("--save_pipeline", type=bool, default=True, help="write the whole diffusers pipeline too")
        parser.add_argument("--kept", type=list[str], default=[], help="kept names shown in the before/after picture")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.set_defaults(
            {
                "trainer.max_epochs": 1,
                "trainer.logger": False,
                "trainer.enable_checkpointing": False,
                "trainer.log_every_n_steps": 1,
            }
        )

    def before_fit(self) -> None:
        config = self.config["fit"]
        plain = yaml.safe_load(self._parser("fit").dump(config, skip_none=False))
        plain.pop("config", None)
        names = ("output_dir", "overwrite", "save_pipeline", "kept")
        export = Export(**{name: config[name] for name in names}, config=plain)
        self.trainer.callbacks.append(export)  # type: ignore[attr-defined]


class _CacheCLI(_SingleCommand):
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return _SingleCommand.only("cache")


def _with_bundled(args: list[str]) -> list[str]:
    """``--config`` files are looked up in the project and in the installed package too."""
    found = list(args)
    for i, word in enumerate(args):
        if word.startswith("--config="):
            found[i] = f"--config={resolve(word.split('=', 1)[1])}"
        elif word == "--config" and i + 1 < len(args):
            found[i + 1] = str(resolve(args[i + 1]))
    return found


def _fit_args(args: list[str]) -> list[str]:
    """Name the output after the last configuration, unless the command names it."""
    configs = [Path(a.split("=", 1)[1]) for a in args if a.startswith("--config=")]
    configs += [Path(args[i + 1]) for i, a in enumerate(args[:-1]) if a == "--config"]
    if any(a.split("=")[0] == "--output_dir" for a in args) or not configs:
        return args
    if any("output_dir" in (yaml.safe_load(c.read_text(encoding="utf-8")) or {}) for c in configs if c.is_file()):
        return args
    return [*args, "--output_dir", f"checkpoints/erased/{configs[-1].stem}"]


def erase_main(args: list[str] | None = None) -> None:
    """Edit a model: ``python erase.py fit --config ...``; other commands are listed by ``--help``."""
    words = sys.argv[1:] if args is None else list(args)
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return
    try:
        _run(command, _with_bundled(words[1:]))
    except ValueError as error:
        sys.exit(f"erase.py {command}: error: {error}")


def _run(command: str, rest: list[str]) -> None:
    if command == "fit":
        _lightning(_FitCLI, Mace, ConceptData, ["fit", *_fit_args(rest)])
    elif command == "cache":
        _lightning(_CacheCLI, PromptStatistics, Captions, ["cache", *rest])
    elif command == "fuse":
        print(f"Written to {auto_cli(fuse_run, args=rest)}")
    else:
        raise ValueError(f"there is no such command. {USAGE}")


def _lightning(cli: type[LightningCLI], model: Any, data: Any, args: list[str]) -> LightningCLI:
    return cli(
        model,
        data,
        trainer_class=MaceTrainer,
        auto_configure_optimizers=False,
        seed_everything_default=2024,
        save_config_callback=None,
        args=args,
    )


def train_main(args: ArgsType = None) -> None:
    """Train the parts of a small diffusion model, or fine-tune one: ``python train.py fit --config ...``."""
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=2024,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"default_env": False},
        args=args,
    )
