"""Lightning's command line with configurations of the project, one line for each bad setting, and interrupts that show.

Whatever a user gets wrong is a :class:`UserError`, on the command line as in Python, and never SystemExit.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, Namespace  # type: ignore[attr-defined]
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mace_pl.callbacks.progress import SaidByTenths
from mace_pl.commands.explained import causes, explained, missing_package
from mace_pl.commands.parsing import LightningParser, check_config
from mace_pl.errors import Stopped, UserError, one_line
from mace_pl.files.paths import failed_folder, resolve
from mace_pl.files.run_log import RunLog, logs
from mace_pl.files.screen import program, screen
from mace_pl.training.options import check_trainer


class ProjectConfig(ActionConfigFile):
    """``--config`` that finds the files of the project and of the installed package too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Read one configuration; a file that is no YAML in UTF-8 is named."""
        check_config(resolve(values))
        super().__call__(parser, namespace, str(resolve(values)), option_string)  # type: ignore[no-untyped-call]


class EndsWhenTold(Callback):
    """End ``predict`` on SIGTERM: Lightning's own loop notes the signal and continues."""

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop after the batch in which the signal came."""
        if trainer.received_sigterm:
            raise SIGTERMException


RAISING = {"exit_on_error": False, "allow_abbrev": False}  # of a parser
CHECKPOINT = ("ckpt_path", "weights_only")  # of Lightning; nothing here reads one


class OneLineCLI(LightningCLI):
    """Lightning's command line, in which a bad setting is a :class:`UserError`."""

    command_parser: LightningArgumentParser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with ``--config``."""
        parser = LightningParser(**kwargs)
        parser.add_argument("-c", "--config", action=ProjectConfig, help="YAML file of settings; later ones win")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keep the command's parser: it knows all options."""
        self.command_parser = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read all settings.

        Raises:
            UserError: naming the one that does not exist, with the nearest that does, or that has a wrong value.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(explained(error, self.command_parser.get_defaults().keys())) from error

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer.

        Raises:
            UserError: of a class that the user has named, also one whose package is not installed; jsonargparse wraps
                it into an error of its own.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            user_error = next((e for e in causes(error) if isinstance(e, UserError)), None)
            if user_error is None:
                user_error = missing_package(error)
            if user_error is None or user_error is error:
                raise
            raise user_error from error


class CommandLine(OneLineCLI):
    """One command of Lightning's; its name is the only key of ``subcommands``.

    The Trainer's options are checked before anything runs. A progress bar of ours is shown where the user has none.
    """

    def __init__(
        self, model: Any, data: Any, trainer: type[Trainer], args: ArgsType, log: RunLog | None = None
    ) -> None:
        self.parts, self.log = {"model": model, "data": data}, log
        with self.logged():
            super().__init__(
                model,
                data,
                trainer_class=trainer,
                auto_configure_optimizers=False,
                seed_everything_default=2024,
                save_config_callback=None,
                parser_kwargs=RAISING | {name: dict(RAISING) for name in self.subcommands()},
                args=args,
            )

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write the log of a command that fails by more than a setting; what an earlier failure left goes at the end.

        It has no file where nothing was parsed yet, and none beside the one that a run opens when it trains.
        """
        try:
            yield
        except Stopped as done:
            screen().print(str(done), highlight=False)
        except Exception as error:
            if self.log is not None and "config" in vars(self) and not isinstance(error, UserError):
                self.log.open(self.log_folder, getattr(rank_zero_only, "rank", 0))
            raise
        if getattr(rank_zero_only, "rank", 0) == 0:
            for file in logs(self.log_folder):
                file.unlink(missing_ok=True)
            with suppress(OSError):  # it is not there, or holds other files
                self.log_folder.rmdir()

    @property
    def log_folder(self) -> Path:
        """Where the log of a command that fails is written."""
        return failed_folder(Path(self.settings["model"]["output"]))

    @property
    def settings(self) -> Namespace:
        """The configuration of the command, as it was parsed."""
        settings: Namespace = self.config[str(self.subcommand)]
        return settings

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, as Lightning's own, which says how and not what for."""
        says = "seed of all that is random; true draws one"
        parser.add_argument("--seed_everything", type=bool | int, default=self.seed_everything_default, help=says)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our options first, then those of the Trainer."""
        for name, part in self.parts.items():
            parser.add_lightning_class_args(part, name)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.usage = f"{program()} {next(iter(self.subcommands()))} [--config FILE] [options]"

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read all settings.

        Raises:
            UserError: see above, and a seed that cannot be.
        """
        super().parse_arguments(parser, args)
        seed = self.config[self.config["subcommand"]]["seed_everything"]
        if not 0 <= int(seed) < 2**32:
            raise UserError(f"seed_everything={seed} must be from 0 to 2^32 - 1.")

    def progress_bar(self) -> ProgressBar | None:
        """The bar that is shown where the user has chosen none; Lightning's own when None."""
        return None

    def callbacks(self) -> list[Callback]:
        """What the command does beside the hooks of its model."""
        return []

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer.

        Raises:
            UserError: options that Lightning does not take, or not on this machine.
        """
        given = self.config_init[str(self.subcommand)]["trainer"]
        callbacks = given["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        own = any(isinstance(c, ProgressBar) for c in callbacks)
        if not own and not screen().is_terminal:  # in a file a bar is one long line, and comes too late
            kwargs["enable_progress_bar"] = False
            callbacks.append(SaidByTenths(str(self.subcommand)))
        shown = kwargs.get("enable_progress_bar", given["enable_progress_bar"])
        hidden = shown is False or given["barebones"]  # None leaves it to Lightning, which shows one
        progress = None if hidden or own else self.progress_bar()
        callbacks += [EndsWhenTold(), *([] if progress is None else [progress]), *self.callbacks()]
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            defaults = self.command_parser.get_defaults()["trainer"]
            changed = [f"trainer.{name}={value}" for name, value in given.items() if value != defaults.get(name)]
            options = f" with {', '.join(changed)}" if changed else ""
            raise UserError(f"the Trainer cannot be made{options}: {one_line(error)}") from error

    def after_instantiate_classes(self) -> None:
        """Refuse options that would cut the run short or change what it does."""
        assert isinstance(self.trainer, Trainer)
        check_trainer(self.trainer, self.subcommand)  # type: ignore[arg-type]


@contextmanager
def interrupts() -> Iterator[None]:
    """Turn the ways in which Lightning ends an interrupted run into KeyboardInterrupt.

    It exits with 1 on Ctrl+C and with 0 on SIGTERM, and may leave Ctrl+C switched off.

    Raises:
        KeyboardInterrupt: the run was interrupted or told to end.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException as error:
        raise KeyboardInterrupt("SIGTERM") from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
