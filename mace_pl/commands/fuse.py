"""Fuse a finished run again: drop or re-weight concepts without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.concepts.preservation import StageWeights
from mace_pl.errors import UserError
from mace_pl.export.formats import Finished
from mace_pl.files.artifacts import claim_output
from mace_pl.files.owned import refuse_inputs
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.chosen import chosen
from mace_pl.models.backbone import backbone_of
from mace_pl.run import Fused, Run, inputs_of
from mace_pl.stages.again import check_files, model_of, solve_again

Way = Literal["fused", "added", "refined"]


def fuse_run(
    run: str,
    output_dir: str | None = None,
    drop: list[str] | str | None = None,
    weights: dict[str, float] | str | None = None,
    overwrite: bool = False,
    save_pipeline: bool = True,
    method: Way | None = None,
    refine: dict[str, float] | None = None,
    fuse: dict[str, float] | None = None,
    pretrained: str | None = None,
    layout: str | None = None,
    without_hardening: bool = False,
) -> Path:
    """Fuse a run again from what is on disk.

    The LoRAs were trained on the refinement of all the run's concepts; with another set, or with other weights of the
    refinement, they are reused as they are, which is an approximation.

    Args:
        run: output folder of ``fit`` or ``fuse``.
        output_dir: where to write; default the run's folder with ``method`` behind it, as in ``-fused``.
        drop: targets to leave out, a list or ``ship,dog``; those that ``model.domain_names`` holds are then preserved
            with the other names.
        weights: erasure strength per target, a mapping or ``ship=0.5,dog=1``: 1 erases it fully, 0 preserves it; those
            of a run that was fused before stay.
        overwrite: replace ``output_dir`` where it exists.
        save_pipeline: write the whole pipeline too.
        method: ``fused``, the closed-form fusion; ``added``, the LoRAs simply added to the refined weights; or
            ``refined``, the refined weights without LoRAs. The last two show what each stage contributes. Default
            that of a run that was fused before, else ``fused``, and ``refined`` where the run trained no LoRAs.
        refine: weights of the refinement in place of the run's, such as ``{domain: 0.1}``.
        fuse: weights of the fusion in place of the run's.
        pretrained: where the run's base model is now; where the run found it when None.
        layout: where the layout of a base in one file is now; where the run found it when None.
        without_hardening: leave out what ``harden`` has trained, which belongs to the edit as it was.

    Returns:
        The folder that was written.

    Raises:
        UserError: no run there, an unknown target, nothing left, a weight outside [0, 1], a term that no closed form
            has, or a hardened run.
    """
    given = _pairs(weights) if isinstance(weights, str) else weights or {}
    old = _unhardened(run, without_hardening)
    dropped = clean_names(drop.split(",") if isinstance(drop, str) else drop or [], "drop")
    concepts, strengths = _chosen(old, dropped, {clean_name(name, "weights"): w for name, w in given.items()})
    model = model_of(old)
    for stage, changed in (("refine", refine or {}), ("fuse", fuse or {})):
        model[stage] = _changed(model, changed, stage)
    closed_form = chosen(model.get("method"))
    way = _way(old, closed_form, method, strengths, fuse)
    output = Path(output_dir) if output_dir else old.home.with_name(f"{old.home.name}-{way}")
    refuse_inputs(output, [("run", old.home)])
    claim_output(output, overwrite)
    pipeline, source, base = old.base.load(pretrained, layout)
    model = base.applied(model)
    check_files(model)
    refuse_inputs(output, [("base model", source.place), *inputs_of({"model": model})])
    plain = {"harden": None} if "harden" in model else {}  # whoever adds to the new run or repeats it gets none either
    config = {**old.config, "model": model | plain, "output_dir": str(output)}
    new = Run(output, base, concepts, config, old.seed, Fused(way, strengths, model["refine"], model["fuse"]))
    solved = solve_again(old, new, pipeline, closed_form)
    finished = Finished(new, pipeline, source, solved.edit, solved.original)
    _write(old, finished, ["edit", "refined", *(("pipeline",) if save_pipeline else ())], overwrite)
    return output


def _unhardened(run: str, without_hardening: bool) -> Run:
    """The run.

    Raises:
        UserError: it is not there, or hardened.
    """
    old = Run.load(run)
    if old.hardened and not without_hardening:
        raise UserError(
            f"run={run} is hardened, for the edit as it is. Pass --without_hardening true, and harden the new run."
        )
    return old


def _way(
    old: Run, closed_form: ClosedForm, method: Way | None, strengths: Mapping[str, float], fuse: dict[str, float] | None
) -> str:
    """How the edit is put together.

    Raises:
        UserError: the closed form has no such way, takes no strengths, or the fusion has weights and is not solved.
    """
    if not closed_form.takes_strength and any(weight != 1 for weight in strengths.values()):
        raise UserError(f"weights: {closed_form!r} takes no strength: it erases a target or does not. Drop it instead.")
    if method not in (None, "refined") and not closed_form.trains:
        raise UserError(f"method={method}: the run trained no LoRAs ({closed_form!r}). Pass refined, or leave it out.")
    way = method or (old.fused.method if old.fused else "fused" if closed_form.trains else "refined")
    if fuse and way != "fused":
        raise UserError(f"fuse={fuse} has no effect with method {way}, which has no fusion. Change --refine instead.")
    return way


def _write(old: Run, finished: Finished, forms: Sequence[str], overwrite: bool) -> None:
    """The folder of a run that was fused from an old one."""
    backbone_of(finished.pipeline).set_key_values(finished.weights)
    with finished.run.save(overwrite) as aside:
        aside.take_concepts(old)
        for name in forms:
            finished.write(name, aside.place(name))


def _pairs(text: str) -> dict[str, float]:
    """``ship=0.5,dog=1`` as a mapping.

    Raises:
        UserError: something else.
    """
    try:
        return {name: float(strength) for name, strength in (pair.rsplit("=", 1) for pair in text.split(","))}
    except ValueError as error:
        raise UserError(f"weights={text} must be target=strength pairs, as in ship=0.5,dog=1.") from error


def _chosen(old: Run, drop: list[str], weights: dict[str, float]) -> tuple[list[Mapping[str, Any]], dict[str, float]]:
    """The concepts that are left, and their strengths: those of a run that was fused before, where none are given.

    Raises:
        UserError: an unknown target, a strength outside [0, 1], or nothing is left.
    """
    for name in [*drop, *weights]:
        if name not in old.targets:
            raise UserError(f"{name!r} is no target of {old.folder}. Its targets are {', '.join(old.targets)}.")
    for name, weight in weights.items():
        if not 0 <= weight <= 1:
            raise UserError(f"weights: {name}={weight} must be between 0 (preserved) and 1 (erased).")
    left = [concept for concept in old.concepts if concept["target"] not in drop]
    if not left:
        raise UserError("drop leaves no target. Use the original model instead.")
    strengths = {**(old.fused.weights if old.fused else {}), **weights}
    return left, {c["target"]: strengths[c["target"]] for c in left if c["target"] in strengths}


def _changed(model: dict[str, Any], changed: dict[str, float], stage: str) -> dict[str, float]:
    """The weights of a closed form, some of them changed."""
    terms = [field.name for field in fields(StageWeights)]
    known = "identity, prior, domain and growth, each at least 0 and finite, or absolute, which is true or false"
    domain = next((model[name] for name in ("domain", "domain_names", "domain_vocabulary") if model.get(name)), None)
    preserved = {"prior": model.get("prior"), "domain": domain}
    for term, value in changed.items():
        if value and term in preserved and not preserved[term]:
            raise UserError(f"{stage}: {term}={value} has no effect: the run has no model.{term}. Fit it with one.")
        if term not in terms or not 0 <= value < float("inf"):
            raise UserError(f"{stage}: {term}={value} must be one of {known}.")
    given: dict[str, float] = model[stage]
    own = {"growth": 0.0} if "domain" in changed else {}  # a weight that is given is meant for the targets there are
    return given | own | changed
