"""What an edit preserves: files of statistics, names, and the names of a vocabulary that the edit would move most."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mace_pl.concepts.concept import AUTO, Concept, read_names
from mace_pl.concepts.named import Named, sum_names
from mace_pl.concepts.preservation import (
    NAMES,
    StageWeights,
    check_weights,
    names_that_stay,
    names_to_preserve,
    preservation,
    statistics_of,
    with_domain,
)
from mace_pl.concepts.vocabulary import COMMON, OWN, WITH_STYLES, common_words
from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Tokens
from mace_pl.methods.closed_form import Preservation, absolute, both_forms, metric, plain_edit, sizes
from mace_pl.methods.edit import ConceptSums
from mace_pl.models.backbone import Backbone
from mace_pl.models.protocols import Pipeline
from mace_pl.run import Run
from mace_pl.stages.beside import beside_inputs
from mace_pl.stages.pooled import pooled_preservation

log = logging.getLogger(__name__)

AFFECTED = 20  # names of a vocabulary that a user gives
FIRST = 5  # names that are said to count most
#: of another one: of the ship's twelve tested names on the bundled model, 20 preserved 90 %, 40 96 % and all 94 98 %
MANY = 100


@dataclass(frozen=True)
class Preserving:
    """What a run is told to preserve.

    Attributes:
        refine: terms of stage 1 from files, with its weights.
        fuse: likewise of stage 3.
        names: that stay.
        vocabulary: names of which those stay that the edit would move most.
        affected: how many of the vocabulary.
        chosen_from: what the vocabulary is called, where its names are chosen once for the run; empty where they are
            not.
        moved: of the names that were chosen for the run, as in :class:`Preserved`; empty before.
        among: how many names they were chosen among.
        styles: that the model says that it knows; in the vocabulary once a style is erased.
        prompted: those names, of all that may be preserved, that are summed in prompts of a style.
        pooled: terms of stage 1 for SDXL's pooled text; None where it is not edited.
        beside: a run whose concepts are erased too, so that they are not preserved; None for none.
    """

    refine: Preservation
    fuse: Preservation = field(default_factory=Preservation)
    names: Sequence[str] = ()
    vocabulary: Sequence[str] = ()
    affected: int = AFFECTED
    pooled: Preservation | None = None
    beside: Run | None = None
    chosen_from: str = ""
    moved: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    among: int = 0
    styles: Sequence[str] = ()
    prompted: frozenset[str] = frozenset()

    @property
    def known(self) -> list[str]:
        """The names that a user or a model has named; not the project's own."""
        return [*self.names, *(() if self.chosen_from == COMMON else self.vocabulary)]

    def styles_among(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are summed in prompts of a style, upper or lower case."""
        prompted = {name.casefold() for name in self.prompted}
        return [name for name in names if name.casefold() in prompted]

    def for_targets(self, concepts: Iterable[Concept]) -> Preserving:
        """The same; where one of these is a style, and the vocabulary is the model's, with its styles in it."""
        if not self.styles or self.chosen_from != OWN or all(concept.kind != "style" for concept in concepts):
            return self
        return replace(self, vocabulary=[*self.vocabulary, *self.styles], chosen_from=WITH_STYLES)

    def with_names(self, chosen: Mapping[str, tuple[float, float]]) -> Preserving:
        """The same with names that were chosen out of the vocabulary: :func:`most_affected`."""
        moved = {name: (size, by) for name, (size, by) in chosen.items()}
        return replace(self, names=[*self.names, *moved], vocabulary=(), moved=moved, among=len(self.vocabulary))


@dataclass(frozen=True)
class Preserved:
    """What a run preserves.

    Attributes:
        refine: all terms of stage 1.
        fuse: all terms of stage 3.
        named: what is summed of the names; None without names.
        targets: how many targets the sums hold.
        moved: of the names out of the vocabulary: ‖e‖_A in the original and ‖(T_e − I) e‖_A by the plain edit.
    """

    refine: Preservation
    fuse: Preservation
    named: Named | None = None
    targets: int = 1
    moved: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def preserving(
    model: Mapping[str, Any],
    stages: Sequence[StageWeights],
    method: ClosedForm,
    backbone: Backbone,
    fingerprint: str,
    known: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> Preserving:
    """What a run is told to preserve, with its files read.

    Args:
        model: the settings of ``model``, of which ``prior``, ``domain``, ``domain_names``, ``domain_vocabulary``,
            ``domain_affected``, ``domain_styles``, ``pooled`` and ``beside`` count.
        stages: the weights of stages 1 and 3.
        method: the closed form.
        backbone: the original model.
        fingerprint: of its text encoder.
        known: names that it knows, where it says so.
        styles: likewise.

    Raises:
        UserError: a file that does not fit, names without a weight, a weight that is negative or not finite, or a
            number below 1.
    """
    check_weights(stages)
    counting = stages if method.trains else stages[:1]
    auto = model.get("domain_names") == AUTO
    listed = {name: None if auto and name == "domain_names" else model.get(name) for name in NAMES}
    names, vocabulary = (names_to_preserve(listed[name], counting, method.reads_names, name) for name in NAMES)
    chosen_from = "model.domain_vocabulary" if auto and vocabulary else ""
    if auto and not vocabulary and not model.get("domain") and any(weights.domain for weights in counting):
        vocabulary, chosen_from = (list(known), OWN) if known else (common_words(), COMMON)
    affected = model.get("domain_affected")
    if affected is not None and affected < 1:
        raise UserError(f"model.domain_affected={affected} must be at least 1. Leave domain_vocabulary out for none.")
    text, pooled_text = backbone.encode([""])
    files = preservation(model.get("prior"), model.get("domain"), stages, fingerprint, text.shape[-1])
    width = None if pooled_text is None else pooled_text.shape[-1]
    pooled = pooled_preservation(model, stages[0], method, backbone, width)
    beside = Run.load(model["beside"], "model.beside") if model.get("beside") else None
    affected = affected or (MANY if chosen_from in (OWN, COMMON) else AFFECTED)
    own = model.get("domain_styles")
    prompted = frozenset([*styles, *common_words("styles")] if own == AUTO else read_names(own, "model.domain_styles"))
    later = styles if chosen_from == OWN else ()  # preserved too once a style is erased
    named = {name.casefold() for name in (*names, *vocabulary, *later)}
    bare = not method.trains and method.tokens in ("last", "bare")
    idle = [name for name in sorted(prompted) if bare or name.casefold() not in named]
    if idle and own != AUTO:
        why = f"{method!r} sums bare names" if bare else "no such names are preserved"
        log.info(f"model.domain_styles: {', '.join(idle)} changes nothing, for {why}")
    found = Preserving(files[0], files[1], names, vocabulary, affected, pooled, beside, chosen_from)
    return replace(found, styles=styles, prompted=prompted)


def inputs_of(
    model: Mapping[str, Any], stages: Sequence[StageWeights], wanted: Preserving, method: ClosedForm
) -> dict[str, Any]:
    """All inputs that decide what is preserved where stage 2 depends on it, for a run's identity; files by hashes."""
    files = statistics_of(model.get("prior"), model.get("domain"))
    told: dict[str, Any] = {"refine": stages[0].told(), "names": wanted.names, "files": files}
    told |= {"styles": sorted(wanted.prompted)} if wanted.names or wanted.vocabulary else {}
    if method.down == "gram":
        told["fuse"] = stages[1].told()
    if wanted.vocabulary:  # of a run that chooses once, until it has
        told["vocabulary"] = {"names": wanted.vocabulary, "affected": wanted.affected}
    if wanted.pooled is not None:
        told["pooled"] = True
    if wanted.beside is not None:
        told["beside"] = beside_inputs(wanted.beside)
    return told


def preserve(
    pipeline: Pipeline,
    wanted: Preserving,
    method: ClosedForm,
    total: ConceptSums,
    targets: Sequence[str],
    original: Mapping[str, Tensor],
    said: bool = True,
    full: ConceptSums | None = None,
) -> Preserved:
    """Sum the names that stay, over the tokens that the method sums of its targets; stage 3 over those of prompts.

    Where weights follow the number of targets, the names count by what the plain edit would do to them.

    Args:
        pipeline: tokenizers and text encoders.
        wanted: what the run was told.
        method: the closed form.
        total: the sums over all targets.
        targets: what is erased.
        original: the keys and values W [O, D] by layer name.
        said: log what is preserved.
        full: the sums with each target at full strength; ``total`` when None. Names count by these, so that they do
            not depend on strengths.
    """
    moved = most_affected(pipeline, wanted, total, targets, original)
    names = names_that_stay(pipeline, [*wanted.names, *moved], targets, said)
    moved |= wanted.moved
    by_prompts: Tokens = "coexisting" if method.trains and method.tokens in ("last", "bare") else method.tokens
    harm = harm_of(full or total, metric(original.values())) if names and method.by_number else None
    named = sum_names(pipeline, names, {method.tokens, by_prompts}, wanted.styles_among(names), harm)
    if said and named is not None and named.counts is not None and len(names) > 1:
        log.info(counted(names, named.counts))
    grams = named.grams if named else {}
    count = len(targets)
    refine = absolute(with_domain(wanted.refine, grams.get(method.tokens)), total.F, count)
    fuse = absolute(with_domain(wanted.fuse, grams.get(by_prompts)), total.F_all, count)
    if said:
        log.info(f"Weights of stage 1: {both_forms(refine, total.F)}{grown(wanted.refine, count)}")
    if said and method.trains:
        log.info(f"Weights of stage 3: {both_forms(fuse, total.F_all)}{grown(wanted.fuse, count)}")
    return Preserved(refine, fuse, named, count, moved)


def harm_of(total: ConceptSums, A: Tensor) -> Tensor:
    """M = (T_e − I)ᵀ A (T_e − I) [D, D]: eᵀ M e is the square by which the plain edit T_e moves the token e, ‖·‖_A²."""
    T = plain_edit(total.F / total.pairs, total.G / total.pairs)
    moved = T - torch.eye(len(T), dtype=T.dtype)
    return moved.T @ A @ moved


def counted(names: Sequence[str], counts: Tensor) -> str:
    """How names count, in words: those that count most, by their share of the mean."""
    most = counts.argsort(descending=True, stable=True)[:FIRST].tolist()
    shown = ", ".join(f"{names[i]} {float(counts[i]):.2g}" for i in most)
    return (
        f"model.domain_names: names count by what the edit would do to all tokens of their prompts, "
        f"{float(counts.min()):.2g} to {float(counts.max()):.2g} times the mean of {len(names)}; most: {shown}"
    )


def grown(given: Preservation, targets: int) -> str:
    """How the weight of the domain has followed from the number of targets, in words; nothing where it has not."""
    if not given.growth:
        return ""
    return f"; the domain's is {given.domain_weight:g} · n^{given.growth:g} for n = {targets} targets"


def most_affected(
    pipeline: Pipeline,
    wanted: Preserving,
    total: ConceptSums,
    targets: Sequence[str],
    original: Mapping[str, Tensor],
    said: bool = True,
) -> dict[str, tuple[float, float]]:
    """The names of the vocabulary that the plain edit T_e moves most, in the metric A of all layers, most first.

    After "Fantastic Targets for Concept Erasure in Diffusion Models, and Where to Find Them" (arXiv 2410.15618), which
    looks for the concepts that an erasure harms, and SPEED (arXiv 2503.07392), whose filter ‖W_l (T_e − I) e‖ is
    taken over all layers here: its square summed is ‖(T_e − I) e‖_A².

    With ``said`` off it is said elsewhere.

    Returns:
        By name: ‖e‖_A and ‖(T_e − I) e‖_A of its last token.
    """
    vocabulary = names_that_stay(pipeline, wanted.vocabulary, [*targets, *wanted.names], said=False)
    named = sum_names(pipeline, vocabulary, {"last"})
    if named is None:
        return {}
    A = metric(original.values())
    before, moved = sizes(named.last, A), sizes(named.last, harm_of(total, A))
    order = moved.argsort(descending=True, stable=True)[: wanted.affected].tolist()
    chosen = {vocabulary[i]: (float(before[i]), float(moved[i])) for i in order}
    shown = ", ".join(f"{name} {moved:.3g} of {size:.3g}" for name, (size, moved) in chosen.items())
    if said:
        log.info(
            f"model.domain_vocabulary: {len(chosen)} of {len(vocabulary)} names are preserved, those that the edit "
            f"would move most (by how much, of their size in the original): {shown}"
        )
    return chosen
