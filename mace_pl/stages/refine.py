"""Stage 1: one closed form for all targets at once, and the text embeddings that the later stages need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.tokens import attended_positions, matched_positions
from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums
from mace_pl.methods.closed_form import gram
from mace_pl.methods.edit import ConceptSums, Edit, SumsOnDisk, summed
from mace_pl.models.backbone import Backbone, backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.stages.preserve import Preserved, Preserving, preserve
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
        edit: of the keys and values, as W T for most methods.
        original: the keys and values W [O, D] before it, by layer name.
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
        """The refined keys and values by layer name, in the dtype of W."""
        return self.edit.weights(self.original)


def check_anchors(method: ClosedForm, concepts: Sequence[Concept]) -> None:
    """Refuse targets without the anchor that the method needs, and anchors that it has no use for.

    Raises:
        UserError: naming the first such target.
    """
    for concept in concepts:
        if method.anchored and not concept.anchor:
            raise UserError(
                f"data.concepts: anchor is empty in {concept}. Name it, as in {{target: ship, anchor: ground}}."
            )
        if concept.anchor and not method.anchored:
            raise UserError(
                f"data.concepts: {concept.target!r} has the anchor {concept.anchor!r}, for which {method!r} has no "
                f"use: it removes the target and puts nothing in its place. Write anchor: '', or choose another "
                f"model.method."
            )


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
        concepts: what is erased.
        templates: prompts with ``{}`` of each concept.
        method: which tokens are summed, and the solve.
        wanted: what is preserved.
        attend_padding: whether the loss of stage 2 looks at the end token and the padding too.

    Raises:
        UserError: the system is singular, or anchors that do not go with the method.
    """
    sums, texts = sum_concepts(backbone_of(pipeline), concepts, templates, method, attend_padding)
    edit, original, preserved = solve(pipeline, method, sums, wanted)
    return Refined(edit, original, sums, texts, preserved)


def solve(
    pipeline: Pipeline, method: ClosedForm, sums: Mapping[str, ConceptSums], wanted: Preserving
) -> tuple[Edit, dict[str, Tensor], Preserved]:
    """The closed form over all concepts: the edit, the keys and values before it, and what is preserved.

    Args:
        pipeline: the original model.
        method: the closed form.
        sums: by target.
        wanted: what is preserved.
    """
    backbone = backbone_of(pipeline)
    original, total = backbone.key_values(), summed(sums.values())
    preserved = preserve(pipeline, wanted, method, total, list(sums), original)
    blank = backbone.encode([""])[0][0].cpu().double() if method.reads_names else None
    pairs = float(total.pairs)
    return (
        method.solve(Sums(total.F, total.G, preserved.refine, original, pairs, preserved.last, blank)),
        original,
        preserved,
    )


def sum_concepts(
    backbone: Backbone,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    attend_padding: bool,
) -> tuple[SumsOnDisk, Texts]:
    """F, G and F_i of every concept, and its prompts for stage 2; see :func:`refine_concepts`."""
    check_anchors(method, concepts)
    sums, texts = SumsOnDisk(), Texts(TensorStore(), [], [])
    bare = method.tokens in ("last", "bare")
    for concept, own in zip(concepts, templates, strict=True):
        embeddings, pooled = None, None
        if method.trains or not bare:
            embeddings, pooled = backbone.encode([t.replace("{}", concept.target) for t in own])
            embeddings = embeddings.cpu()
        target, anchor = matched_tokens(
            backbone, concept, [BARE] if bare else own, method, None if bare else embeddings
        )
        F, G = gram(target, target), gram(anchor, target)
        F_all = torch.zeros_like(F)
        if method.trains and embeddings is not None:
            F_all = gram(embeddings, embeddings)
            attended = [attended_positions(backbone.tokenizers[0], t, concept.target, attend_padding) for t in own]
            texts.embeddings.add(embeddings)
            texts.pooled.append(pooled)
            texts.positions.append(torch.tensor(attended))
        sums.add(concept.target, ConceptSums(F, G, F_all, torch.tensor(float(len(target)), dtype=torch.float64)))
    return sums, texts


def matched_tokens(
    backbone: Backbone, concept: Concept, templates: Sequence[str], method: ClosedForm, embeddings: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tokens [K, D] of a target and those of its anchor that the method pairs; zeros where it has no anchor.

    Args:
        backbone: the original model.
        concept: the target and its anchor.
        templates: P prompts.
        method: which tokens are summed.
        embeddings: of the target in each of them, [P, T, D]; encoded here when None.
    """
    words = concept.anchor if method.anchored else concept.target
    targets = (
        backbone.encode([t.replace("{}", concept.target) for t in templates])[0] if embeddings is None else embeddings
    )
    anchors = backbone.encode([t.replace("{}", words) for t in templates])[0].cpu() if method.anchored else None
    of_target, of_anchor = [], []
    for i, template in enumerate(templates):
        own, other = matched_positions(backbone.tokenizers[0], template, concept.target, words, method.tokens)
        of_target.append(targets[i, own].cpu())
        of_anchor.append(anchors[i, other] if anchors is not None else torch.zeros_like(of_target[-1]))
    return torch.cat(of_target), torch.cat(of_anchor)
