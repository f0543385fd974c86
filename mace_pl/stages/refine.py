"""Stage 1: one closed form for all targets at once, and the text embeddings that the later stages need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.tokens import attended_positions, matched_positions
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import Preservation, gram
from mace_pl.methods.edit import ConceptSums, SumsOnDisk, summed
from mace_pl.models.backbone import Backbone
from mace_pl.training.tensor_store import TensorStore

BARE = "{}"  # the template of a method that looks at the bare name


@dataclass(frozen=True)
class Texts:
    """The prompts of each concept as stage 2 reads them, by the concept's number.

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
        T: [D, D] in float64; every key and value becomes W T.
        original: the keys and values W [O, D] before it, by layer name.
        sums: F, G and F_i of each target, on disk.
        texts: the prompts of each concept.
    """

    T: Tensor
    original: Mapping[str, Tensor]
    sums: SumsOnDisk
    texts: Texts

    def weights(self) -> dict[str, Tensor]:
        """W T by layer name, in the dtype of W."""
        return {name: (W.double() @ self.T.to(W.device)).to(W.dtype) for name, W in self.original.items()}


def refine_concepts(
    backbone: Backbone,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    method: ClosedForm,
    keep: Preservation,
    attend_padding: bool,
) -> Refined:
    """Sum the tokens of every concept and solve the closed form; the network is not changed.

    Args:
        backbone: the original model.
        concepts: what is erased.
        templates: prompts with ``{}`` of each concept.
        method: which tokens are summed, and the solve.
        keep: what is preserved.
        attend_padding: whether the loss of stage 2 looks at the end token and the padding too.

    Raises:
        UserError: the system is singular.
    """
    sums, texts = SumsOnDisk(), Texts(TensorStore(), [], [])
    for concept, own in zip(concepts, templates, strict=True):
        embeddings, pooled = backbone.encode([t.replace("{}", concept.target) for t in own])
        embeddings = embeddings.cpu()
        F, G = matched_grams(backbone, concept, own, embeddings, method)
        sums.add(concept.target, ConceptSums(F, G, gram(embeddings, embeddings)))
        attended = [attended_positions(backbone.tokenizers[0], t, concept.target, attend_padding) for t in own]
        texts.embeddings.add(embeddings)
        texts.pooled.append(pooled)
        texts.positions.append(torch.tensor(attended))
    original, total = backbone.key_values(), summed(sums.values())
    return Refined(method.solve(total.F, total.G, keep, original), original, sums, texts)


def matched_grams(
    backbone: Backbone, concept: Concept, templates: Sequence[str], embeddings: Tensor, method: ClosedForm
) -> tuple[Tensor, Tensor]:
    """F = Σ e_f e_fᵀ and G = Σ e_g e_fᵀ [D, D] of one concept, over the tokens that the method pairs.

    Args:
        backbone: the original model.
        concept: the target and its anchor.
        templates: P prompts.
        embeddings: of the target in each of them, [P, T, D].
        method: which tokens are summed.
    """
    if method.tokens == "last":
        templates, embeddings = [BARE], backbone.encode([concept.target])[0].cpu()
    anchors = backbone.encode([t.replace("{}", concept.anchor) for t in templates])[0].cpu()
    of_target, of_anchor = [], []
    for i, template in enumerate(templates):
        own, other = matched_positions(backbone.tokenizers[0], template, concept.target, concept.anchor, method.tokens)
        of_target.append(embeddings[i, own])
        of_anchor.append(anchors[i, other])
    left, right = torch.cat(of_target), torch.cat(of_anchor)
    return gram(left, left), gram(right, left)
