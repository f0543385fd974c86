"""The search: Optuna proposes weights, and keeps every trial on disk."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mace_pl.errors import UserError, install, one_line
from mace_pl.files.screen import screen
from mace_pl.tuning.measure import Scores
from mace_pl.tuning.pick import Tried, beats

RANDOM = 8  # trials that are drawn before the sampler models what it has seen
UNPRUNED = 4  # trials that are never cut short
STUDY = "study.sqlite3"  # in the folder of a search
IDENTITY, PILOT, PROCESS = "identity", "pilot", "process"  # what is written beside trials

#: the least and the largest value, on a log scale, by ``stage.term`` and ``strength.target``; or a list of choices
Space = Mapping[str, tuple[float, float] | list[float]]
Score = Callable[[Mapping[str, float], Callable[[Scores], bool]], Scores | None]


def optuna() -> Any:
    """The library, which is optional.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise UserError(f"tune: the package optuna is not installed. {install('tune')}") from error
    library.logging.disable_default_handler()
    library.logging.enable_propagation()
    logging.getLogger("optuna").setLevel(logging.WARNING)
    return library


def proposed(trial: Any, name: str, own: tuple[float, float] | list[float]) -> float:
    """A value out of a range, on a log scale, or out of a list."""
    if isinstance(own, list):
        return float(trial.suggest_categorical(name, own))
    return float(trial.suggest_float(name, *own, log=True))


class Search:
    """A search that lies in a file: it resumes, and several processes may work on it.

    Args:
        file: SQLite; made where it does not exist.
        space: what is searched.
        seed: of the proposals; the n-th one depends on it, n, and on the scores of those before.
        identity: of all inputs on which scores depend.

    Raises:
        UserError: the file holds a search with other inputs, or its folder cannot be made.
    """

    def __init__(self, file: Path, space: Space, seed: int, identity: str) -> None:
        self.library, self.space, self.seed = optuna(), space, seed
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"study: the folder {file.parent} cannot be made ({why}). Give another --study.") from error
        self.study = self.opened(file)
        known = self.study.user_attrs.get(IDENTITY)
        if known not in (None, identity) and self.study.get_trials(deepcopy=False):
            raise UserError(
                f"study: {file} is a search with another run, judge, prompts or ranges. Give another --study, or "
                f"remove its folder."
            )
        self.study.set_user_attr(IDENTITY, identity)

    def opened(self, file: Path) -> Any:
        """The search of a file, which is made where it is missing.

        Raises:
            UserError: it is no database, or damaged.
        """
        from sqlalchemy.engine import URL  # comes with Optuna
        from sqlalchemy.exc import DatabaseError

        try:
            study = self.library.create_study(
                storage=URL.create("sqlite", database=str(file)).render_as_string(),  # a path may hold ? and %
                study_name="tune",
                directions=["maximize", "maximize"],
                load_if_exists=True,
            )
            study.get_trials(deepcopy=False)  # damage behind the first pages shows here
        except (DatabaseError, self.library.exceptions.StorageInternalError) as error:
            raise UserError(
                f"study: {file} cannot be read ({one_line(error)[:200]}). Give another --study, or remove its folder."
            ) from error
        return study

    def run(self, trials: int, score: Score, first: Mapping[str, float]) -> None:
        """Go on until so many trials are done, by this and other processes.

        Args:
            trials: how many in all.
            score: scores values; asks with the scores of a few seeds whether it shall continue, None where not.
            first: the values that are tried first.
        """
        self.drop_killed()
        if done := len(self.of("COMPLETE", "PRUNED")):
            screen().print(f"The search goes on: {done} of {trials} trials are there.", highlight=False)
        while len(self.of("COMPLETE", "PRUNED")) < trials:
            number = len(self.of("COMPLETE", "PRUNED", "RUNNING"))
            if number == 0:
                self.study.enqueue_trial(dict(first), skip_if_exists=True)
            self.study.sampler = self.library.samplers.TPESampler(seed=self.seed + number, n_startup_trials=RANDOM)
            trial = self.study.ask()
            trial.set_user_attr(PROCESS, [os.getpid(), psutil.Process().create_time()])
            values = {name: proposed(trial, name, own) for name, own in self.space.items()}
            found = score(values, lambda pilot, trial=trial: self.goes_on(trial, pilot))  # type: ignore[misc]
            if found is None:
                self.study.tell(trial, state=self.library.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, (1 - found.acc_e, found.acc_s))
            said = "cut short" if found is None else str(found)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            screen().print(f"trial {number + 1} of {trials}: {shown}: {said}", highlight=False)

    def of(self, *states: str) -> list[Any]:
        """The trials of some states."""
        wanted = tuple(self.library.trial.TrialState[state] for state in states)
        found: list[Any] = self.study.get_trials(deepcopy=False, states=wanted)
        return found

    def drop_killed(self) -> None:
        """Give trials up whose process is no more: they are proposed again."""
        for trial in self.of("RUNNING"):
            pid, began = trial.user_attrs.get(PROCESS, (-1, 0.0))
            alive = pid >= 0 and psutil.pid_exists(pid) and psutil.Process(pid).create_time() == began
            if not alive:
                self.study.tell(trial.number, state=self.library.trial.TrialState.FAIL)

    def goes_on(self, trial: Any, pilot: Scores) -> bool:
        """Whether a trial is worth all its seeds: no earlier one beats its few, or its H is above their median."""
        earlier = [Scores(*t.user_attrs[PILOT]) for t in self.of("COMPLETE", "PRUNED") if PILOT in t.user_attrs]
        trial.set_user_attr(PILOT, [pilot.acc_e, pilot.acc_s])
        if len(earlier) < UNPRUNED or not any(beats(other, pilot) for other in earlier):
            return True
        return pilot.h >= statistics.median(other.h for other in earlier)

    def tried(self) -> list[Tried]:
        """The trials that were scored by all seeds."""
        return [  # in the order of the space: a search that is read again has its own
            Tried(t.number + 1, {name: t.params[name] for name in self.space}, Scores(1 - t.values[0], t.values[1]))
            for t in self.of("COMPLETE")
        ]

    @property
    def counts(self) -> dict[str, int]:
        """How many trials were scored, and how many cut short."""
        return {"scored": len(self.of("COMPLETE")), "cut short": len(self.of("PRUNED"))}
