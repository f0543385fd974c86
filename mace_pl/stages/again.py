"""Stages 1 and 3 again, from the sums and LoRAs that lie on the disk: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mace_pl.concepts.concept import AUTO
from mace_pl.concepts.preservation import LISTS, StageWeights
from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.files.versions import library_of, mend
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import Preservation, absolute
from mace_pl.methods.edit import ConceptSums, Edit, Factors, SumsOnDisk
from mace_pl.methods.fusion import FULL, FusedLoras, added, fusion
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.run import CONFIG, Run
from mace_pl.stages.beside import with_beside
from mace_pl.stages.preserve import Preserved, Preserving, preserve, preserving
from mace_pl.stages.refine import solve, solve_total
from mace_pl.stages.strengths import Changes


@dataclass(frozen=True)
class Solved:
    """What is solved.

    Attributes:
        refined: the edit of stage 1.
        edit: the whole edit.
        original: the weights W [O, D] that it changes, before it, by layer name.
    """

    refined: Edit
    edit: Edit
    original: dict[str, Tensor]


def model_of(run: Run) -> dict[str, Any]:
    """The ``model`` part of a run's configuration.

    Raises:
        UserError: the run has no configuration, or no sums of its concepts.
    """
    lost = {} if run.config else {CONFIG: run.folder / CONFIG}
    files = {f"statistics of {target}": run.statistics_file(target) for target in run.targets}
    lost |= {name: file for name, file in files.items() if not file.is_file()}
    for file in lost.values() if library_of(run.folder) else ():
        raise UserError(f"run: {file} is not there. {mend(file)}")
    for name in lost:
        raise UserError(f"run={run.folder} cannot be fused: it has no {name}. Give the folder that fit wrote.")
    model = dict(run.config["model"])
    for stage in ("refine", "fuse"):
        if not isinstance(model.get(stage), dict):
            raise UserError(f"run: {run.folder / CONFIG} has no weights in model.{stage}. Restore the file.")
    return model


def solve_again(old: Run, new: Run, pipeline: Pipeline, method: ClosedForm, said: bool = True) -> Solved:
    """The edit of a new run, in the order of its concepts.

    Args:
        old: where the sums and LoRAs of its concepts lie.
        new: its concepts, settings, and how it is fused.
        pipeline: the original model.
        method: the closed form.
        said: log what is preserved.

    Raises:
        UserError: a file of a concept that is not there or does not fit, or the system is singular.
    """
    assert new.fused is not None
    sums, loras, layers = SumsOnDisk(), {}, backbone_of(pipeline).key_values()
    weights = [new.fused.weights.get(target, 1.0) for target in new.targets]
    full = SumsOnDisk() if any(weight != 1 for weight in weights) else None  # those of full strength, where others are
    trained = method.trains and new.fused.method != "refined"
    for target, weight in zip(new.targets, weights, strict=True):
        statistics, factors = old.concept(target, layers, trained)
        sums.add(target, statistics.weighted(weight))
        if full is not None:
            full.add(target, statistics)
        loras[target] = {n: (A, weight * B) for n, (A, B) in factors.items()}
    wanted = wanted_of(pipeline, new.config["model"], method)
    refined, original, preserved = solve(pipeline, method, sums, wanted, said, full)
    edit = refined
    if new.fused.method == "fused":
        edit = fusion(refined, sums, loras, preserved.fuse)
    elif new.fused.method == "added":
        edit = added(refined, list(loras.values()))
    return Solved(refined, edit, original)


class Again:
    """A run that is solved again and again with other weights and strengths; what depends on neither is made once.

    Args:
        run: its sums and LoRAs, and how it was fused before.
        pipeline: the original model; afterwards its keys and values may be any edit's.
        method: the closed form.

    Raises:
        UserError: a file of a concept that is not there or does not fit.
    """

    def __init__(self, run: Run, pipeline: Pipeline, method: ClosedForm) -> None:
        self.run, self.pipeline, self.method = run, pipeline, method
        self.strengths = dict.fromkeys(run.targets, 1.0) | dict(run.fused.weights if run.fused else {})
        self.layers = backbone_of(pipeline).key_values()
        self.original = backbone_of(pipeline).text_layers()
        self.sums, self.changes, self.loras = SumsOnDisk(), Changes(), dict[str, Factors]()
        for target in run.targets:
            statistics, self.loras[target] = run.concept(target, self.layers, method.trains)
            self.sums.add(target, statistics)
            self.changes.add(target, statistics)
        self.wanted = wanted_of(pipeline, run.config["model"], method)
        joined = with_beside(self.sums, self.wanted.beside)
        self.total, self.erased = joined.total, list(joined)  # each of the run's targets at full strength
        self.preserved = self.preserve(self.changes.weighted(self.total, self.strengths), said=True)

    def preserve(self, total: ConceptSums, said: bool = False) -> Preserved:
        """What is preserved; with a vocabulary that depends on strengths."""
        return preserve(self.pipeline, self.wanted, self.method, total, self.erased, self.layers, said, self.total)

    def solve(
        self,
        refine: StageWeights,
        fuse: StageWeights,
        strengths: Mapping[str, float] = FULL,
        loras: Mapping[str, Factors] | None = None,
    ) -> dict[str, Tensor]:
        """The edited weights by layer name.

        Args:
            refine: weights of stage 1.
            fuse: weights of stage 3.
            strengths: in [0, 1] by target; those of the run where a target is not named.
            loras: others of the same targets in place of the run's.

        Raises:
            UserError: a system is singular.
        """
        strong = self.strengths | dict(strengths)
        total = self.changes.weighted(self.total, strong)
        kept = self.preserve(total) if strengths and self.wanted.vocabulary else self.preserved
        preserved = replace(
            kept,
            refine=absolute(weighted(kept.refine, refine), total.F, kept.targets),
            fuse=absolute(weighted(kept.fuse, fuse), total.F_all, kept.targets),
        )
        pooled = None if self.wanted.pooled is None else weighted(self.wanted.pooled, refine)
        wanted = replace(self.wanted, pooled=pooled)
        edit = solve_total(self.pipeline, self.method, total, wanted, preserved, self.layers)
        if self.method.trains:
            edit = FusedLoras.of(self.sums, loras or self.loras, preserved.fuse).edit(edit, strong)
        return edit.weights(self.original if edit.pooled is not None else self.layers)


def weighted(preservation: Preservation, weights: StageWeights) -> Preservation:
    """The same terms with other weights."""
    terms = weights.identity, preservation.prior, weights.prior, preservation.domain, weights.domain
    return Preservation(*terms, weights.absolute, weights.growth)


def wanted_of(pipeline: Pipeline, model: Mapping[str, Any], method: ClosedForm) -> Preserving:
    """What a run preserves, by the ``model`` part of its configuration."""
    weights = [StageWeights(**model[stage]) for stage in ("refine", "fuse")]
    return preserving(model, weights, method, backbone_of(pipeline), encoder_fingerprint(pipeline))


def check_files(model: Mapping[str, Any]) -> None:
    """Refuse statistics that are not there: of a run that is used from another folder than it was made in.

    Raises:
        UserError: naming the file.
    """
    for name in ("prior", "domain", *LISTS):
        given = model.get(name) or {}
        if name in LISTS:
            given = [given] if isinstance(given, str) and given != AUTO else []
        for file in [given] if isinstance(given, str) else given:
            if not resolve(file).is_file():
                where = "" if Path(file).is_absolute() else f" below the working folder {Path.cwd()}"
                raise UserError(
                    f"run: its model.{name}={file} does not exist{where}. Restore the file, run the command where the "
                    f"run was made, or correct the path in the config.yaml of the run."
                )
