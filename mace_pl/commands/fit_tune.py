"""``fit --tune N``: a run, and behind it the search of its weights; what is picked is the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mace_pl.callbacks.write_run import next_steps
from mace_pl.commands.export import export_run
from mace_pl.commands.tune import say, study_of, tune_run
from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.identity import identity
from mace_pl.run import Run
from mace_pl.tuning.search import optuna

OPTIONS = ("tune", "judge", "confirm_by")  # of ``fit``, which no run's configuration holds
DECIDES = ("model", "data", "seed_everything")
WRITTEN = ("overwrite", "save_pipeline", "export")
ORDER = "fit.json"  # in the folder of the search: what the run was made from
STEPS = 20  # denoising steps of the search at most


def untuned(output: Path) -> Path:
    """Where the run is written that is searched."""
    return output.with_name(f"{output.name}-untuned")


@dataclass(frozen=True)
class TunedFit:
    """A run and the search behind it.

    Attributes:
        output: folder of what is picked.
        trials: of the search.
        written: ``overwrite``, ``save_pipeline`` and ``export`` of it.
        order: of all settings that decide the run; empty before they are known.
    """

    output: Path
    trials: int
    written: Mapping[str, Any]
    order: str = ""

    @staticmethod
    def of(settings: Any) -> TunedFit:
        """What ``fit`` was asked for, by its settings.

        Raises:
            UserError: fewer trials than one, no classifier, no Optuna, or an output that exists.
        """
        trials, output = settings["tune"], Path(settings["output_dir"])
        if trials < 1:
            raise UserError(f"tune={trials} must be at least 1: the number of trials. Leave it out for no search.")
        if settings["classifier"] is None:
            raise UserError(
                f"tune={trials} wants a classifier, which says what is next to the targets and judges the images. Give "
                f"--classifier, the folder of a CLIPModel."
            )
        optuna()
        claim_output(output, settings["overwrite"])
        return TunedFit(output, trials, {name: settings[name] for name in WRITTEN})

    def ordered(self, config: Mapping[str, Any]) -> TunedFit:
        """The same, once all settings of the run are known."""
        return replace(self, order=identity({name: config[name] for name in DECIDES}))

    @property
    def mark(self) -> Path:
        """The file that says what the run was made from."""
        return study_of(self.output) / ORDER

    @property
    def fitted(self) -> bool:
        """Whether the run is there, made from these settings."""
        if Run.edit_in(untuned(self.output)) is None:
            return False
        with suppress(OSError, ValueError):
            return bool(json.loads(self.mark.read_text(encoding="utf-8")) == {"order": self.order})
        return False

    def begin(self) -> None:
        """Say what the run is made from; of one that replaces another not before it is there."""
        if untuned(self.output).exists():
            self.mark.unlink(missing_ok=True)
        else:
            self.end()

    def end(self) -> None:
        """Say what the run was made from."""
        write_json(self.mark, {"order": self.order})

    def search(self, settings: Any, judge: Any, confirm_by: Any) -> None:
        """Search the run that is there.

        Args:
            settings: of ``fit``.
            judge: of the search.
            confirm_by: of the confirmation; None for the same.

        Raises:
            UserError: nothing is preserved that could be scored, and what :func:`mace_pl.commands.tune.tune_run` says.
        """
        self.end()
        run, data = untuned(self.output), settings["data"]
        own = Run.load(run).config["model"].get("domain_names") or settings["kept"]
        if not own:
            raise UserError("tune: no name is preserved that could be scored. Give some as --kept; the run is kept.")
        images = {"steps": min(data["image_steps"], STEPS), "guidance": data["image_guidance"]}
        given = {"classifier": settings["classifier"], "judge": judge, "confirm_by": confirm_by}
        given |= {name: self.written[name] for name in ("overwrite", "save_pipeline")}
        tune_run(str(run), str(self.output), trials=self.trials, names=list(own), **images, **given)
        for form in self.written["export"] or []:
            if form != "pipeline" or not self.written["save_pipeline"]:
                export_run(str(self.output), form)
        say(f"Written to {self.output}; the run before the search: {run}")
        for line in next_steps(self.output):
            say(line)
