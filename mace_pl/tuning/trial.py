"""A trial: a run solved again with other values, and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.files.screen import screen
from mace_pl.methods.chosen import chosen
from mace_pl.methods.edit import Factors
from mace_pl.models.backbone import backbone_of
from mace_pl.run import Run
from mace_pl.stages.again import Again, check_files, model_of
from mace_pl.tuning.measure import Measure, Scores, scores
from mace_pl.tuning.search import Score
from mace_pl.tuning.space import stage_weights, strengths_in

Solve = Callable[[Mapping[str, float]], dict[str, Tensor]]  # the edited weights by layer name, of a trial's values


def solver(run: Run, pretrained: str | None, layout: str | None) -> Again:
    """The run, ready to be solved again, with its original model on the device that there is.

    Raises:
        UserError: a run that is hardened, or was fused in another way.
    """
    model = model_of(run)
    method = chosen(model.get("method"))
    way = run.fused.method if run.fused else ""
    if way and way != ("fused" if method.trains else "refined"):
        raise UserError(f"run={run.folder} was fused with method={way}, whose weights are not searched. Give another.")
    if run.hardened:
        raise UserError(f"run={run.folder} is hardened, for the edit as it is. Give the run that it was made from.")
    pipeline, _, base = run.base.load(pretrained, layout)
    config = {**run.config, "model": base.applied(run.config["model"])}
    check_files(config["model"])
    again = Again(replace(run, base=base, config=config), pipeline, method)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return again


def of(measure: Measure, run: Run) -> Scores:
    """Scores of a run, by the weights that its folder holds."""
    backbone = backbone_of(measure.pipeline)
    own = {f"{name}.weight": weight for name, weight in backbone.text_layers().items()}
    weights = run.refined(own)
    measure.take({name.removesuffix(".weight"): weight for name, weight in weights.items()})
    return scores(measure.score(measure.rows))


def solving(again: Again, loras: Callable[[Mapping[str, float]], Mapping[str, Factors]]) -> Solve:
    """What solves the values of a trial; raises UserError where a system is singular or LoRAs cannot be trained.

    Args:
        again: the run.
        loras: those of a trial, by its values.
    """

    def solve(values: Mapping[str, float]) -> dict[str, Tensor]:
        refine, fuse = stage_weights(values)
        return again.solve(refine, fuse, strengths_in(values), loras(values))

    return solve


def of_values(measure: Measure, solve: Solve, values: Mapping[str, float]) -> Scores:
    """Scores of all rows, by the values of a trial.

    Raises:
        UserError: see :func:`solving`.
    """
    measure.take(solve(values))
    return scores(measure.score(measure.rows))


def trial_of(measure: Measure, solve: Solve) -> Score:
    """What scores values: by a few seeds first, then by all; None where these or the closed forms say no."""

    def score(values: Mapping[str, float], goes_on: Callable[[Scores], bool]) -> Scores | None:
        try:
            measure.take(solve(values))
        except UserError as error:  # a singular system, or a learning rate that is too large
            screen().print(f"No edit of these values: {error}", highlight=False)
            return None
        pilot = measure.score([row for row in measure.rows if row.pilot])
        return scores(measure.score(measure.rows, pilot)) if goes_on(scores(pilot)) else None

    return score
