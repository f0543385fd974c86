"""Stage 1: one closed form for all targets at once, and the text embeddings that the later stages need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mace_pl.concepts.concept import AUTO, Concept
from mace_pl.concepts.token_report import check_prompts
from mace_pl.concepts.tokens import attended_positions, matched_positions
from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums
from mace_pl.methods.closed_form import gram
from mace_pl.methods.edit import ConceptSums, Edit, Pairs, SumsOnDisk
from mace_pl.models.backbone import Backbone, backbone_of
from mace_pl.models.encoded_once import Row, encoded_once, stacked
from mace_pl.models.protocols import Pipeline
from mace_pl.stages.beside import with_beside
from mace_pl.stages.pooled import pooled_matrix
from mace_pl.stages.preserve import Preserved, Preserving, most_affected, preserve
from mace_pl.training.tensor_store import TensorStore

BARE = "{}"  # the template of a method that looks at the bare name


@dataclass(frozen=True)
class Texts:
    """The prompts of each concept as stage 2 reads them, by the concept's number; empty where nothing is trained.

    Attributes:
        embeddings: [P, T, D] of P prompts, on disk.
        pooled: [P, E], None where the model has no pooled text.
        positions: [P, T] bool, the tokens that the loss looks at.
    """

    embeddings: TensorStore
    pooled: list[Tensor | None]
    positions: list[Tensor]


@dataclass(frozen=True)
class Refined:
    """What stage 1 leaves.

    Attributes:
        edit: of the keys and values, as W T for most methods, and of SDXL's pooled text.
        original: the weights W [O, D] that it changes, before it, by layer name.
        sums: F, G and F_i of each target, on disk.
        texts: the prompts of each concept.
        preserved: what stages 1 and 3 preserve.
    """

    edit: Edit
    original: Mapping[str, Tensor]
    sums: SumsOnDisk
    texts: Texts
    preserved: Preserved

    def weights(self) -> dict[str, Tensor]:
        """The refined weights by layer name, in the dtype of W."""
        return self.edit.weights(self.original)


def check_anchors(method: ClosedForm, concepts: Sequence[Concept]) -> None:
    """Refuse targets without the anchor that the method needs, and anchors that it has no use for.

    Raises:
        UserError: naming the first such target.
    """
    for concept in concepts:
        if concept.anchor == AUTO:
            raise UserError(
                f"data.concepts: the anchor of {concept.target!r} is {AUTO}, and nothing has chosen one. Name it, as "
                f"in {{target: ship, anchor: ground}}, or add the callback ChooseAnchors, as fit does."
            )
        if method.anchored and not concept.anchor:
            raise UserError(
                f"data.concepts: the anchor of {concept.target!r} is empty. Name it, as in {{target: ship, anchor: "
                f"ground}}, or choose a model.method without anchors (CURE)."
            )
        if concept.anchor and not method.anchored:
            raise UserError(
                f"data.concepts: {concept.target!r} has the anchor {concept.anchor!r}, for which {method!r} has no "
                f"use: it removes the target and puts nothing in its place. Write anchor: '', or choose another "
                f"model.method."
            )


def check_concepts(
    pipeline: Pipeline, concepts: Sequence[Concept], templates: Sequence[Sequence[str]], method: ClosedForm
) -> None:
    """Refuse concepts that cannot be erased from this model by this method; before :func:`refine_concepts`.

    Raises:
        UserError: see :func:`check_anchors` and :func:`mace_pl.concepts.token_report.check_prompts`.
    """
    check_anchors(method, concepts)
    check_prompts(pipeline, concepts, templates)


def refine_concepts(
    pipeline: Pipeline,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    wanted: Preserving,
    attend_padding: bool,
) -> Refined:
    """Sum the tokens of every concept and solve the closed form; the network is not changed.

    Args:
        pipeline: the original model.
        concepts: what is erased, as :func:`check_concepts` lets it through.
        templates: prompts with ``{}`` of each concept.
        method: which tokens are summed, and the solve.
        wanted: what is preserved.
        attend_padding: whether the loss of stage 2 looks at the end token and the padding too.

    Raises:
        UserError: the system is singular.
    """
    pooled = wanted.pooled is not None
    sums, texts = sum_concepts(backbone_of(pipeline), concepts, templates, method, attend_padding, pooled)
    edit, original, preserved = solve(pipeline, method, sums, wanted)
    return Refined(edit, original, sums, texts, preserved)


def choose_names(
    pipeline: Pipeline,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    wanted: Preserving,
) -> dict[str, tuple[float, float]]:
    """The names of the vocabulary that the edit of these concepts would move most: :func:`most_affected`."""
    backbone = backbone_of(pipeline)
    sums = with_beside(sum_concepts(backbone, concepts, templates, method, attend_padding=True)[0], wanted.beside)
    return most_affected(pipeline, wanted, sums.total, list(sums), backbone.key_values(), said=False)


def solve(
    pipeline: Pipeline,
    method: ClosedForm,
    sums: SumsOnDisk,
    wanted: Preserving,
    said: bool = True,
    full: SumsOnDisk | None = None,
) -> tuple[Edit, dict[str, Tensor], Preserved]:
    """The closed form over all concepts: the edit, the weights that it changes before it, and what is preserved.

    Args:
        pipeline: the original model.
        method: the closed form.
        sums: by target.
        wanted: what is preserved.
        said: log what that comes to; not where an edit is solved that was solved before.
        full: the sums with each target at full strength; ``sums`` when None.

    Raises:
        UserError: the system is singular, or the edit is not finite.
    """
    backbone, sums = backbone_of(pipeline), with_beside(sums, wanted.beside)
    original, total = backbone.key_values(), sums.total
    strong = None if full is None else with_beside(full, wanted.beside).total
    preserved = preserve(pipeline, wanted, method, total, list(sums), original, said, strong)
    edit = solve_total(pipeline, method, total, wanted, preserved, original)
    return edit, original if edit.pooled is None else backbone.text_layers(), preserved


def solve_total(
    pipeline: Pipeline,
    method: ClosedForm,
    total: ConceptSums,
    wanted: Preserving,
    preserved: Preserved,
    original: Mapping[str, Tensor],
) -> Edit:
    """The closed form, once what is preserved is known.

    Args:
        pipeline: the original model.
        method: the closed form.
        total: the sums over all targets.
        wanted: what the run was told to preserve.
        preserved: what it preserves.
        original: the keys and values W [O, D] by layer name.

    Raises:
        UserError: the system is singular, or the edit is not finite.
    """
    empty = backbone_of(pipeline).encode([""]) if method.reads_names else (None, None)
    text, pooled = (None if one is None else one.cpu().double() for one in empty)
    names, blank = preserved.named.last if preserved.named else None, None if text is None else text[0]
    edit = method.solve(Sums(total.F, total.G, preserved.refine, original, float(total.pairs), names, blank))
    given = wanted.pooled, preserved.named, pooled, preserved.targets
    edit = replace(edit, pooled=pooled_matrix(pipeline, method, total, *given))
    edit.check_finite(
        f"model.method {method!r}. Give its settings nearer to the published ones, or raise --model.refine.identity."
    )
    return edit


def sum_concepts(
    backbone: Backbone,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    attend_padding: bool,
    pooled: bool = False,
) -> tuple[SumsOnDisk, Texts]:
    """F, G and F_i of every concept, and its prompts for stage 2; see :func:`refine_concepts`.

    With ``pooled`` those of pooled embeddings too.
    """
    sums, texts = SumsOnDisk(), Texts(TensorStore(), [], [])
    bare = method.tokens in ("last", "bare")
    paired = [[BARE] if bare else own for own in templates]
    trained = [list(own) if method.trains else [] for own in templates]
    requests = [
        [*filled([*ours, *own], concept.target), *filled(ours if method.anchored else [], concept.anchor)]
        for concept, ours, own in zip(concepts, paired, trained, strict=True)
    ]
    encoded = encoded_once(backbone.encode, requests)
    for concept, ours, own, rows in zip(concepts, paired, trained, encoded, strict=True):
        pairs = matched(backbone, concept, ours, method, rows, pooled)
        found: Pairs | ConceptSums = pairs if pairs.few else pairs.sums()
        if own:
            embeddings, pooled_texts = stacked(rows, filled(own, concept.target))
            found = replace(pairs.sums(), F_all=gram(embeddings, embeddings))
            attended = [attended_positions(backbone.tokenizers[0], t, concept.target, attend_padding) for t in own]
            texts.embeddings.add(embeddings)
            texts.pooled.append(pooled_texts)
            texts.positions.append(torch.tensor(attended))
        sums.add(concept.target, found)
    return sums, texts


def filled(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of a name."""
    return [template.replace("{}", name) for template in templates]


def matched(
    backbone: Backbone,
    concept: Concept,
    templates: Sequence[str],
    method: ClosedForm,
    rows: Mapping[str, Row],
    pooled: bool,
) -> Pairs:
    """The tokens of a target and those of its anchor that the method pairs, and the pooled embeddings.

    Args:
        backbone: the original model.
        concept: the target and its anchor.
        templates: P prompts.
        method: which tokens are summed.
        rows: the target in each of them, and the anchor where the method has one, by prompt.
        pooled: whether their pooled embeddings are paired too.
    """
    words = concept.anchor if method.anchored else concept.target
    targets, pooled_targets = stacked(rows, filled(templates, concept.target))
    anchors, pooled_anchors = torch.zeros_like(targets), None if pooled_targets is None else 0 * pooled_targets
    if method.anchored:
        anchors, pooled_anchors = stacked(rows, filled(templates, concept.anchor))
    of_target, of_anchor = [], []
    for i, template in enumerate(templates):
        own, other = matched_positions(backbone.tokenizers[0], template, concept.target, words, method.tokens)
        of_target.append(targets[i, own])
        of_anchor.append(anchors[i, other])
    of_pooled = (pooled_targets, pooled_anchors) if pooled else (None, None)
    return Pairs(torch.cat(of_target), torch.cat(of_anchor), *of_pooled)
