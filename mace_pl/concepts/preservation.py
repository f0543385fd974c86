"""Preservation terms (prior and domain): weights of both closed forms, files of statistics, names to preserve."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mace_pl.concepts.concept import AUTO, read_names
from mace_pl.errors import UserError
from mace_pl.files.identity import hash_files
from mace_pl.files.paths import resolve
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.gram_statistics import files_of, load_statistics, weighted_statistics
from mace_pl.models.protocols import Pipeline
from mace_pl.models.source import Source
from mace_pl.models.text_encoding import names_beside

log = logging.getLogger(__name__)

NAMES = ("domain_names", "domain_vocabulary")  # settings of ``model`` that name what is preserved
LISTS = (*NAMES, "domain_styles")  # those that take a list of names, or a file of them
OWN_PRIOR = "statistics/prior.safetensors"  # in the folder of a model


@dataclass
class StageWeights:
    """Weights of the preservation terms of one closed form; see :class:`GivenWeights`.

    Args:
        identity: λ_I, keeps the matrix itself.
        prior: λ_p in stage 1, μ_p in stage 3; weight of the statistics in ``model.prior``.
        domain: λ_d in stage 1, μ_d in stage 3; weight of ``model.domain`` and ``model.domain_names``.
        absolute: whether the weights are those of the equations, as the published ones; else they are relative: at 1 a
            term weighs as much as all tokens of the targets (by the traces of the sums), whatever their numbers.
        growth: the weight of the domain is multiplied by n^growth, with n the number of targets.
    """

    identity: float = 0.0
    prior: float = 0.0
    domain: float = 0.0
    absolute: bool = True
    growth: float = 0.0

    def told(self) -> dict[str, Any]:
        """What tells these weights from others; without a growth as they were told before there was one."""
        return {name: value for name, value in vars(self).items() if name != "growth" or value}


@dataclass
class GivenWeights:
    """What a user gives of :class:`StageWeights`; the others follow from what there is to preserve.

    Args:
        identity: λ_I, keeps the matrix itself; null for the default (docs/tuning.md), by the number of targets.
        prior: λ_p in stage 1, μ_p in stage 3; weight of the statistics in ``model.prior``; null likewise.
        domain: λ_d in stage 1, μ_d in stage 3; weight of ``model.domain`` and ``model.domain_names``; null likewise.
        absolute: whether the weights are those of the equations, as the published ones; else they are relative: at 1 a
            term weighs as much as all tokens of the targets (by the traces of the sums), whatever their numbers.
        growth: the domain's weight is multiplied by n^growth for n targets; when null, 0 for a weight that is given.
    """

    identity: float | None = None
    prior: float | None = None
    domain: float | None = None
    absolute: bool = True
    growth: float | None = None


#: weights of stages 1 and 3 that are not given, where nothing but the matrix itself is preserved
ALONE = (StageWeights(identity=1e3), StageWeights(identity=1e3))
#: where there is a prior or a domain: found by hand on the bundled model, for 1 to 40 targets
BY_NUMBER = (StageWeights(1.0, 0.001, 0.15, growth=0.7), StageWeights(1.0, 0.003, 0.15, growth=0.9))


def weights_of(
    given: Sequence[GivenWeights | StageWeights], model: Mapping[str, Any], by_number: bool
) -> list[StageWeights]:
    """The weights of stages 1 and 3: those that are given, and for the others those that follow the number of targets.

    Names that the run chooses itself are preserved where no weight is given at all, or one is for the domain.

    Args:
        given: of either stage.
        model: the settings of ``model``, which say whether there is a prior or a domain.
        by_number: whether the method has weights that follow the number.

    Raises:
        UserError: a growth of a weight that is 0, or a weight of a prior that is not there.
    """
    silent = without_weights(given)
    domain = model.get("domain") or any(model.get(name) not in (None, AUTO, "", []) for name in NAMES)
    domain = domain or (silent and model.get("domain_names") == AUTO)
    found = []
    rule = BY_NUMBER if by_number and (domain or model.get("prior")) else ALONE
    for stage, own, default in zip(("refine", "fuse"), given, rule, strict=True):
        others = dict(vars(default if own.absolute else ALONE[0]))  # the numbers of the rule are those of the equations
        if not domain or own.domain is not None:
            others |= {"domain": 0.0, "growth": 0.0}
        if not model.get("prior"):
            others["prior"] = 0.0
            if own.prior and 0 < own.prior < float("inf"):
                raise UserError(
                    f"model.{stage}.prior={own.prior:g} has no effect: there is no prior. Give --model.prior, a file "
                    f"of `erase.py cache`, or leave the weight out."
                )
        found.append(StageWeights(**others | {name: value for name, value in vars(own).items() if value is not None}))
        if own.growth and not found[-1].domain:
            raise UserError(
                f"model.{stage}.growth={own.growth} has no effect: the domain has no weight. Give model.{stage}.domain "
                f"too, or leave it out."
            )
    return found


def without_weights(given: Sequence[GivenWeights | StageWeights]) -> bool:
    """Whether all weights are left to the run."""
    return all(own.absolute and (own.identity, own.prior, own.domain) == (None,) * 3 for own in given)


def prior_of(
    prior: str | dict[str, float] | None,
    pretrained: str,
    source: Source,
    given: Sequence[GivenWeights | StageWeights],
    by_number: bool,
    fingerprint: str,
) -> str | dict[str, float] | None:
    """The statistics of captions that a run preserves; of ``auto`` the model's own, :data:`OWN_PRIOR` in its folder.

    Those are taken where no weight is given at all, and the method has weights that follow the number of targets, or
    where one is given for the prior.

    Args:
        prior: as it is set.
        pretrained: the model.
        source: the files that it was read from.
        given: the weights of stages 1 and 3 as they are set.
        by_number: whether the method has weights that follow the number.
        fingerprint: of the model's text encoder; statistics of another are left out.

    Raises:
        UserError: the model's file cannot be read.
    """
    if prior != AUTO:
        return prior
    wanted = any(own.prior for own in given) or (by_number and without_weights(given))
    folder = source.folder
    if not wanted or folder is None or not (folder / OWN_PRIOR).is_file():
        return None
    file = (Path(pretrained) if resolve(pretrained) == folder else folder) / OWN_PRIOR
    try:
        made = load_statistics(resolve(file), "model.prior")[1]
    except UserError as error:
        raise UserError(f"{error} It is the model's own file; --model.prior null goes without.") from error
    if made.get("encoder") != fingerprint:
        log.info(f"model.prior: {file} is of another text encoder than the model has now, and is left out")
        return None
    log.info(f"model.prior: {file} is preserved, the model's own statistics of captions")
    return str(file)


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
    return [Preservation(w.identity, P, w.prior, D, w.domain, w.absolute, w.growth) for w in stages]


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
        log.info(f"model.domain_names: left out, for they are targets or named twice: {left}")
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
