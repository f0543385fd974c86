"""The command line of ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import yaml
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import Module

from mace_pl.callbacks.before_after import BeforeAfter
from mace_pl.callbacks.check_search import CheckSearch
from mace_pl.callbacks.choose_anchors import ChooseAnchors
from mace_pl.callbacks.choose_names import ChooseNames
from mace_pl.callbacks.harden_edit import HardenEdit
from mace_pl.callbacks.lora_checkpoint import LoRACheckpoint
from mace_pl.callbacks.meanwhile import Meanwhile
from mace_pl.callbacks.progress import StageProgress
from mace_pl.callbacks.write_run import WriteRun
from mace_pl.commands.command_line import CHECKPOINT, CommandLine
from mace_pl.commands.fit_order import OPTIONS, TunedFit, untuned
from mace_pl.commands.presets import preset_of
from mace_pl.concepts.concept import AUTO, read_names
from mace_pl.concepts.preservation import LISTS
from mace_pl.concepts.vocabulary import own_names
from mace_pl.data.concepts import ConceptData
from mace_pl.errors import Stopped, UserError
from mace_pl.files.paths import training_folder
from mace_pl.files.screen import screen
from mace_pl.files.taken import default_output
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.run import Run


class FitCLI(CommandLine):
    """``fit``: what it takes beside model, data and Trainer, and what it does beside the hooks of the model."""

    tuned: TunedFit | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Of Lightning's, ``fit`` alone."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", *CHECKPOINT}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the command, behind those of its parts."""
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
            "--kept",
            type=list[str] | None,
            default=None,
            help="preserved names shown and scored in the report; null: four next to the targets; [] for none",
        )
        parser.add_argument("--classifier", type=str | None, default=None, help="folder of a CLIPModel that scores")
        parser.add_argument("--report_seeds", type=int, default=1, help="images per name in the report's scores")
        parser.add_argument(
            "--keep_every_n_steps", type=int, default=50, help="how often a concept in training is kept on disk"
        )
        parser.add_argument(
            "--images_every_n_steps",
            type=int,
            default=0,
            help="how often the edit so far generates a row of images while it trains; 0 for never",
        )
        parser.add_argument(
            "--dry_run",
            type=bool,
            default=False,
            help="say what will go wrong and what the run takes, and end; images only with a classifier",
        )
        parser.add_argument(
            "--preset",
            type=str | None,
            default=None,
            help="sd15, sd21, sdxl or tiny, with a card's GB as in sd15:8; null: read from model and GPU",
        )
        parser.add_argument(
            "--tune",
            type=int | None,
            default=None,
            help="search the weights of the finished run with so many trials; the best is output_dir (extra tune)",
        )
        judges = Literal["clip"] | Module  # in this order: else "clip" is looked for among all subclasses
        parser.add_argument("--judge", type=judges, default="clip", help="of the search: clip, or a class")
        parser.add_argument("--confirm_by", type=judges | None, default=None, help="judge that confirms what it finds")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.set_defaults(
            {
                "trainer.max_epochs": 1,
                "trainer.logger": False,
                "trainer.enable_checkpointing": False,
                "trainer.enable_model_summary": False,
                "trainer.log_every_n_steps": 1,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read all settings, and again with a preset's in place of the defaults, so that those of the user win."""
        super().parse_arguments(parser, args)
        given = self.config[self.config["subcommand"]]
        preset = preset_of(given["preset"], given["model"], str(given["trainer"]["accelerator"]))
        if preset is None:
            return
        if preset.settings:
            self.command_parser.set_defaults(dict(preset.settings))
            super().parse_arguments(parser, args)
        final = self.config[self.config["subcommand"]]
        if getattr(rank_zero_only, "rank", 0) == 0:
            for line in preset.lines(final):
                screen().print(line, highlight=False, soft_wrap=True)

    def before_instantiate_classes(self) -> None:
        """Name the output after the last configuration, unless a setting names it; beside it where it is searched."""
        settings = self.settings
        if settings["output_dir"] is None:
            files = [Path(str(file)).stem for file in settings.get("config") or []]
            settings["output_dir"] = default_output(files[-1] if files else "run")
        idle = [f"{name}={settings[name]}" for name in OPTIONS if settings[name] not in (None, "clip")]
        if idle and settings["tune"] is None:
            raise UserError(f"{idle[0]} is of a search, and none is asked for. Give --tune, or leave it out.")
        if settings["tune"] is not None:
            self.tuned = TunedFit.of(settings)
            settings["output_dir"] = str(untuned(self.tuned.output))
            settings["save_pipeline"], settings["export"] = False, []

    @property
    def log_folder(self) -> Path:
        """Where the run leaves what it resumes from."""
        return training_folder(Path(self.settings["output_dir"]))

    def progress_bar(self) -> ProgressBar:
        """A bar that names stage and concepts."""
        return StageProgress(leave=True)

    def callbacks(self) -> list[Callback]:
        """What chooses anchors, shows the model before and after, writes the run, and saves what it resumes from."""
        config = self.settings
        plain = yaml.safe_load(self.command_parser.dump(config, skip_none=False))
        for name in ("config", *OPTIONS):
            plain.pop(name, None)
        for name in LISTS:  # as they are now: the file may change, and lies elsewhere for who fuses in another folder
            if plain["model"].get(name) != AUTO and isinstance(plain["model"].get(name), str):
                plain["model"][name] = read_names(plain["model"][name], f"model.{name}")
        model = cast(ConceptErasure, self.model)
        plain["data"]["templates"] = cast(ConceptData, self.datamodule).ask_in(own_names(model.source))
        self.resume_search(plain)
        refine, fuse = model.weights
        plain["model"] |= {"refine": vars(refine), "fuse": vars(fuse), "prior": model.prior}
        before_after = BeforeAfter(
            config["kept"],
            config["classifier"],
            config["report_seeds"],
            config["output_dir"],
            config["save_pipeline"] if self.tuned is None else self.tuned.written["save_pipeline"],
            config["dry_run"],
            0 if self.tuned is None else self.tuned.trials,
        )
        shown = config["kept"], config["images_every_n_steps"], not config["dry_run"]
        meanwhile = Meanwhile(config["output_dir"], *shown)
        own = {name: config[name] for name in ("output_dir", "overwrite", "save_pipeline", "export")}
        fusion = plain["model"].get("fuse")
        harden = HardenEdit(config["output_dir"], meanwhile, fusion, config["keep_every_n_steps"])
        own |= {"before_after": before_after, "meanwhile": meanwhile, "harden_edit": harden}
        own |= {"last": self.tuned is None or not self.tuned.order}
        write_run = WriteRun(config=plain, log=self.log, **own)
        checks: list[Callback] = []
        if self.tuned is not None and self.tuned.order:
            judges = [self.config_init[str(self.subcommand)][name] for name in ("judge", "confirm_by")]
            checks = [CheckSearch(plain, config["kept"], judges, self.tuned.begin)]
        checkpoint = LoRACheckpoint(config["output_dir"], config["keep_every_n_steps"])
        anchors = ChooseAnchors(config["output_dir"], config["kept"], config["classifier"], not config["dry_run"])
        names = ChooseNames(config["output_dir"], not config["dry_run"])
        return [meanwhile, anchors, names, *checks, harden, before_after, write_run, checkpoint]

    def resume_search(self, config: dict[str, Any]) -> None:
        """End here where the run that is to be searched is there.

        Raises:
            Stopped: it is.
        """
        if self.tuned is not None and not self.settings["dry_run"]:
            self.tuned = self.tuned.ordered(config)
            if self.tuned.fitted:
                raise Stopped(f"The run is there, and is searched: {self.settings['output_dir']}")

    @property
    def written(self) -> Run | None:
        """What was written; None where the run ended before that."""
        return next(one.run for one in self.trainer.callbacks if isinstance(one, WriteRun))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Refuse to end as if all was well where nothing was written, as after a callback that ends the run early.

        Raises:
            UserError: no edit was written.
        """
        if self.trainer.is_global_zero and self.written is None and not self.trainer.interrupted:
            raise UserError("trainer.callbacks ended the run before the edit was written. Leave such callbacks out.")
