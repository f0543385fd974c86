"""What a search trains: the LoRAs of a run with another learning rate, number of steps or rank, each setting once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from mace_pl.commands.lightning_commands import fit
from mace_pl.errors import UserError
from mace_pl.files.versions import ADDING
from mace_pl.library.change import concepts_of
from mace_pl.methods.edit import Factors
from mace_pl.run import Run
from mace_pl.stages.again import Again

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the run's learning rate
STEPS = (0.5, 1.0, 2.0)  # of the run's steps
RANKS = (1.0, 2.0, 4.0)  # beside the run's
LR, STEPS_PER_CONCEPT, RANK = "train.lr", "train.steps", "train.rank"
Setting = tuple[float, int, int]  # learning rate, steps, rank


@dataclass(frozen=True)
class Trainings:
    """The LoRAs of a search, by how they were trained.

    Args:
        again: the run that is searched.
        folder: of the search.
        known: LoRAs that were read.
    """

    again: Again
    folder: Path
    known: dict[Setting, Mapping[str, Factors]] = field(default_factory=dict)

    @property
    def own(self) -> Setting:
        """How the run itself was trained."""
        config = self.again.run.config
        return float(config["model"]["lr"]), int(config["data"]["steps_per_concept"]), int(config["model"]["rank"])

    def choices(self) -> tuple[dict[str, list[float]], dict[str, float]]:
        """What is tried, few of each so that LoRAs serve many trials; and the run's own.

        Raises:
            UserError: the run has no LoRAs.
        """
        if not self.again.method.trains:
            raise UserError(f"train=true: the run trained no LoRAs ({self.again.method!r}). Leave it out.")
        lr, steps, rank = self.own
        found = {
            LR: [rate * lr for rate in RATES],
            STEPS_PER_CONCEPT: sorted({float(max(1, round(part * steps))) for part in STEPS}),
            RANK: sorted({*RANKS, float(rank)}),
        }
        return found, {LR: lr, STEPS_PER_CONCEPT: float(steps), RANK: float(rank)}

    def setting(self, values: Mapping[str, float]) -> Setting:
        """How the LoRAs of a trial are trained."""
        lr, steps, rank = self.own
        return values.get(LR, lr), int(values.get(STEPS_PER_CONCEPT, steps)), int(values.get(RANK, rank))

    def run_of(self, values: Mapping[str, float]) -> Run:
        """The run whose LoRAs a trial takes, trained where it is not there; a training that was killed resumes.

        Raises:
            UserError: a setting that cannot be used, or LoRAs that are not finite.
        """
        lr, steps, rank = setting = self.setting(values)
        if setting == self.own:
            return self.again.run
        place = self.folder / ADDING / f"lr_{lr:.6g}_steps_{steps}_rank_{rank}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{place.name}.lock")):  # of other processes that work on the study
            if Run.edit_in(place) is None:
                fit(self.order(place, setting))
        return Run.load(place)

    def order(self, place: Path, setting: Setting) -> dict[str, Any]:
        """The settings of ``fit``."""
        config, (lr, steps, rank) = self.again.run.config, setting
        concepts = [vars(concept) for concept in concepts_of(self.again.run)]
        data = {**config["data"], "concepts": concepts, "steps_per_concept": steps}
        unseen = {"kept": [], "report_seeds": 0, "classifier": None, "export": [], "save_pipeline": False}
        own = {"output_dir": str(place), "overwrite": True}
        changed = {"lr": lr, "rank": rank, "harden": None}
        return {**config, **unseen, **own, "data": data, "model": {**config["model"], **changed}}

    def __call__(self, values: Mapping[str, float]) -> Mapping[str, Factors]:
        """The LoRAs of a trial.

        Raises:
            UserError: see :meth:`run_of`.
        """
        setting = self.setting(values)
        if setting == self.own:
            return self.again.loras
        if setting not in self.known:
            run = self.run_of(values)
            self.known[setting] = {t: run.concept(t, self.again.layers, True)[1] for t in run.targets}
        return self.known[setting]
