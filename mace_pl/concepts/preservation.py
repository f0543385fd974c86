"""Preservation terms (prior and domain): weights of both closed forms, files of statistics, names to preserve."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.files.identity import hash_files
from mace_pl.files.paths import resolve
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.gram_statistics import files_of, weighted_statistics
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import names_beside

log = logging.getLogger(__name__)

NAMES = ("domain_names", "domain_vocabulary")  # settings of ``model`` that take a list of names, or a file of them


@dataclass
class StageWeights:
    """Weights of the preservation terms of one closed form.

    Args:
        identity: λ_I, keeps the matrix itself.
        prior: λ_p in stage 1, μ_p in stage 3; weight of the statistics in ``model.prior``.
        domain: λ_d in stage 1, μ_d in stage 3; weight of ``model.domain`` and ``model.domain_names``.
        absolute: whether the weights are those of the equations, as the published ones; else they are relative: at 1 a
            term weighs as much as all tokens of the targets (by the traces of the sums), whatever their numbers.
    """

    identity: float = 0.0
    prior: float = 0.0
    domain: float = 0.0
    absolute: bool = True


def check_weights(stages: Sequence[StageWeights]) -> None:
    """Refuse weights of stages 1 and 3 that are negative or not finite.

    Raises:
        UserError: naming the first.
    """
    for stage, weights in zip(("refine", "fuse"), stages, strict=False):
        for term, value in vars(weights).items():
            if not 0 <= value < float("inf"):
                raise UserError(
                    f"model.{stage}.{term}={value} must be at least 0, and finite. Give 0 for no such term."
                )


def preservation(
    prior: str | Mapping[str, float] | None,
    domain: str | Mapping[str, float] | None,
    stages: Sequence[StageWeights],
    fingerprint: str,
    width: int,
) -> list[Preservation]:
    """The terms of each stage, from its weights and the files of statistics.

    Raises:
        UserError: a file that does not fit the text encoder of ``fingerprint`` and ``width``.
    """
    for term, given in (("prior", prior), ("domain", domain)):
        files = files_of(given)
        stay = all(getattr(weights, term) == 0 for weights in stages)
        idle = [path for path, weight in files.items() if stay or weight == 0]
        if idle:
            why = f"model.refine.{term} and model.fuse.{term} are 0" if stay else "its own weight is 0"
            log.info(f"model.{term}: {', '.join(idle)} changes nothing, for {why}")
    P = weighted_statistics(prior, fingerprint, width, "model.prior")
    D = weighted_statistics(domain, fingerprint, width, "model.domain")
    return [Preservation(w.identity, P, w.prior, D, w.domain, w.absolute) for w in stages]


def names_to_preserve(
    given: Sequence[str] | str | None, stages: Sequence[StageWeights], read: bool = False, setting: str = "domain_names"
) -> list[str]:
    """The names of ``model.domain_names`` or of another setting.

    Args:
        given: a list, or a text file.
        stages: weights of the closed forms that the method has: of stage 1, and of stage 3 where it trains.
        read: whether the method reads names whatever their weight.
        setting: of ``model``.

    Raises:
        UserError: no stage gives them a weight.
    """
    names = read_names(given, f"model.{setting}")
    if names and not read and all(weights.domain == 0 for weights in stages):
        zero = "model.refine.domain and model.fuse.domain are 0. Raise one of them."
        alone = "model.refine.domain is 0, and the method has no fusion. Raise it."
        raise UserError(f"model.{setting} has no effect: {zero if len(stages) > 1 else alone}")
    return names


def names_that_stay(pipeline: Pipeline, names: Sequence[str], targets: Collection[str], said: bool = True) -> list[str]:
    """The names without those that are erased or named twice, in whatever spelling of the same tokens; says so."""
    preserved = names_beside(pipeline, names, targets)
    if said and len(preserved) < len(names):
        left = ", ".join(name for name in names if name not in preserved)
        log.info(f"model.domain_names: left out, for they are erased or named twice: {left}")
    return preserved


def with_domain(preservation: Preservation, added: Tensor | None) -> Preservation:
    """``preservation`` with sums added to those of its domain files."""
    if added is None:
        return preservation
    return replace(preservation, domain=added if preservation.domain is None else preservation.domain + added)


def statistics_of(*settings: str | Mapping[str, float] | None) -> list[Any]:
    """What files of statistics hold, for the identity of a run: a hash and the weights of each setting."""
    given = [{one: 1.0} if isinstance(one, str) else dict(one or {}) for one in settings]
    return [[hash_files(resolve(file) for file in files), list(files.values())] for files in given]
