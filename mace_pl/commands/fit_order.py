"""``fit --tune N``: where the run lies whose weights are searched, and what it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mace_pl.errors import UserError
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.identity import identity
from mace_pl.files.versions import ADDING
from mace_pl.run import CONFIG, Run
from mace_pl.tuning.search import STUDY, optuna

OPTIONS = ("tune", "judge", "confirm_by")  # of ``fit``, which no run's configuration holds
DECIDES = ("model", "data", "seed_everything")
WRITTEN = ("overwrite", "save_pipeline", "export")
ORDER = "fit.json"  # in the folder of the search: what the run was made from


def study_of(output: Path) -> Path:
    """Where the search for an output lies by default."""
    return output.with_name(f"{output.name}.study")


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
            UserError: fewer trials than one, a hardening, no classifier, no Optuna, or an output that exists.
        """
        trials, output = settings["tune"], Path(settings["output_dir"])
        if trials < 1:
            raise UserError(f"tune={trials} must be at least 1: the number of trials. Leave it out for no search.")
        if settings["model"]["harden"] is not None:
            raise UserError(
                f"tune={trials} wants an edit that is not hardened. Leave --model.harden out, and harden its output."
            )
        optuna()
        if settings["classifier"] is None:
            raise UserError(
                f"tune={trials} wants a classifier, which says what is next to the targets and judges the images. Give "
                f"--classifier, the folder of a CLIPModel."
            )
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
        run = untuned(self.output)
        if Run.edit_in(run) is None or not (run / CONFIG).is_file():
            return False
        with suppress(OSError, ValueError):
            return bool(json.loads(self.mark.read_text(encoding="utf-8")) == {"order": self.order})
        return False

    def begin(self) -> None:
        """Say what the run is made from; of one that replaces another not before it is there. Its search goes too."""
        if self.written["overwrite"]:
            (study_of(self.output) / STUDY).unlink(missing_ok=True)
            shutil.rmtree(study_of(self.output) / ADDING, ignore_errors=True)
        if untuned(self.output).exists():
            self.mark.unlink(missing_ok=True)
        else:
            self.end()

    def end(self) -> None:
        """Say what the run was made from."""
        write_json(self.mark, {"order": self.order})
