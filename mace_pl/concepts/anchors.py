"""The rule of ``anchor: auto``: which name an erased one shall mean, by the text encoder alone.

N candidates, M names in all, D text width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.templates import IMAGE_TEMPLATE, TEMPLATES
from mace_pl.concepts.vocabulary import things
from mace_pl.errors import UserError
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encode_both, names_beside, with_all_vectors

FAR = 0.25  # share of the candidates that are far from a target
NEIGHBOURS = 3  # the nearest names of a candidate, whose mean similarity says how crowded it is
#: for a run without names, and for persons and styles without ``data.anchors``: the anchors of the published runs
GENERAL = {"object": ("ground", "sky", "street"), "person": ("a person",), "style": ("art",)}


@dataclass(frozen=True)
class Candidate:
    """A name that a target may get as its anchor.

    Attributes:
        name: the name.
        similarity: cosine of it and the target, each less the mean of all names.
        crowding: mean cosine of it and its nearest names.
    """

    name: str
    similarity: float
    crowding: float


def candidates_of(concept: Concept, given: Sequence[str], names: Sequence[str]) -> list[Sequence[str]]:
    """Among what the anchor of a concept is chosen: the first of these that holds one that is not erased.

    An object becomes a thing, where the names that a run preserves hold one: nobody asked for a person or an animal in
    its place. With forty targets erased from the bundled model, 0.95 of what stays is seen rightly with things as
    anchors, and 0.88 with any names (measured). Of a person or style the names are other people and artists, whom
    nobody asked for either: those get the general word of the published runs.

    Args:
        concept: a target without an anchor.
        given: ``data.anchors``.
        names: that the run preserves.
    """
    own = [things(names), names] if concept.kind == "object" and not given else [given]
    return [pool for pool in own if pool] or [GENERAL[concept.kind]]


def rank_anchors(
    pipeline: Pipeline, concept: Concept, candidates: Sequence[str], targets: Sequence[str], names: Sequence[str]
) -> list[Candidate]:
    """The candidates that are far from a target, the best one first; the same ones whenever the inputs are the same.

    The target's images must not look like the target, so its anchor is one of the quarter of candidates that are
    farthest in the text encoder. Not simply the farthest: the closed form is W T with T − I ≈ (e_g − e_f) e_fᵀ C⁻¹, so
    that whatever lies near the target e_f is pushed along e_g − e_f too, into what lies around the anchor. A name
    with few others around it takes least with it, and is least mistaken for another. So among the far ones those
    come first whose nearest names (targets among them) are farthest. Equal ones come in the candidates' order.

    Several targets may share an anchor: the published runs give one to a hundred of them. Their pushes then agree,
    where anchors of their own would be directions of their own, each with its own damage.

    Args:
        pipeline: tokenizers and text encoders.
        concept: the target.
        candidates: N names.
        targets: all that is erased; a candidate that shares a word or a token with one is left out, as it may be a
            synonym or a part of it.
        names: other names that the model knows, by which crowding is measured.

    Raises:
        UserError: no candidate is left.
    """
    free = apart_from(pipeline, candidates, targets)
    if not free:
        raise UserError(
            f"data.concepts: no anchor is left for {concept.target!r}: each of {', '.join(candidates)} is erased, or "
            f"shares a word with what is. Name its anchor. (fit chooses among data.anchors, where it is given.)"
        )
    known = [*free, *names_beside(pipeline, [*targets, *names], free)]
    vectors_MD = centred(pipeline, TEMPLATES[concept.kind][0], [*known, concept.target])
    own_MN = vectors_MD[:-1] @ vectors_MD[: len(free)].T
    similarity_N = vectors_MD[-1] @ vectors_MD[: len(free)].T
    own_MN.fill_diagonal_(-1.0)  # a name is no neighbour of its own
    count = min(NEIGHBOURS, len(known) - 1)
    crowding_N = own_MN.topk(count, dim=0).values.mean(0) if count else torch.zeros(len(free))
    far = similarity_N.argsort(stable=True)[: math.ceil(FAR * len(free))].sort().values
    order = far[crowding_N[far].argsort(stable=True)].tolist()
    return [Candidate(free[i], float(similarity_N[i]), float(crowding_N[i])) for i in order]


def apart_from(pipeline: Pipeline, candidates: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The candidates, each once, that share neither a word nor a token with a target."""
    tokenizer = backbone_of(pipeline).tokenizers[0]

    def pieces(name: str) -> set[object]:
        ids = tokenizer(with_all_vectors(tokenizer, name), add_special_tokens=False).input_ids
        return {*ids, *name.casefold().split()} - {"a", "an", "the"} - set(articles)

    articles = tokenizer("a an the", add_special_tokens=False).input_ids
    taken = {piece for target in targets for piece in pieces(target)}
    return [name for name in names_beside(pipeline, candidates, targets) if not pieces(name) & taken]


def nearest(pipeline: Pipeline, names: Sequence[str], targets: Sequence[str], count: int) -> list[int]:
    """Numbers of the names that lie nearest to any target in the text encoder, the nearest first; ``count`` at most."""
    vectors_MD = centred(pipeline, IMAGE_TEMPLATE["object"], [*names, *targets])
    similarity_N = (vectors_MD[: len(names)] @ vectors_MD[len(names) :].T).amax(1)
    found: list[int] = similarity_N.argsort(descending=True, stable=True)[:count].tolist()
    return found


def centred(pipeline: Pipeline, template: str, names: Sequence[str]) -> Tensor:
    """Unit vectors [M, D] float64 on the CPU: the end tokens of the names in a prompt, less the mean of them all.

    The end token sees the whole prompt, and all of them have most of it in common; the mean takes that out.
    """
    prompts = [template.replace("{}", name) for name in names]
    tokenizer = backbone_of(pipeline).tokenizers[0]
    length = tokenizer.model_max_length
    whole = [with_all_vectors(tokenizer, prompt) for prompt in prompts]
    ids = tokenizer(whole, truncation=True, max_length=length).input_ids
    text = encode_both(pipeline, prompts)[0].cpu().double()
    ends_MD = torch.stack([text[i, len(own) - 1] for i, own in enumerate(ids)])
    return torch.nn.functional.normalize(ends_MD - ends_MD.mean(0), dim=-1)
