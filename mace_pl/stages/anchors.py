"""Choose the anchors that a user has not named: by the text encoder, and by a judge where there is one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from mace_pl.concepts.anchors import Candidate, apart_from, candidates_of, rank_anchors
from mace_pl.concepts.concept import AUTO, Concept
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.models.pipeline import scheduled
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.models.text_encoding import names_beside

log = logging.getLogger(__name__)

IMAGES = 4  # of a candidate that the judge looks at
WELL = 0.75  # of them that must show it
TRIED = 8  # candidates of a target that are looked at


@dataclass(frozen=True)
class Choice:
    """Among what anchors are chosen, and how.

    Attributes:
        given: ``data.anchors``.
        names: that the run preserves.
        beside: targets of other runs that are erased too.
        classifier: folder of the CLIPModel that judges; None for the text encoder alone.
        steps: denoising steps of what it sees.
        guidance: their guidance scale.
        scheduler: their noise scheduler; the model's own when None.
    """

    given: Sequence[str] = ()
    names: Sequence[str] = ()
    beside: Sequence[str] = ()
    classifier: str | None = None
    steps: int = 30
    guidance: float = 7.5
    scheduler: str | None = None
    seen: dict[str, float] = field(default_factory=dict, compare=False)  # what the judge has said, by candidate

    def looked_at(self, pipeline: Pipeline, name: str, classes: Sequence[str]) -> float:
        """The share of a candidate's images that the judge takes for it."""
        assert self.classifier is not None
        if name not in self.seen:
            prompts = [f"a photo of a {name}"] * IMAGES
            with scheduled(pipeline, self.scheduler, "data.image_scheduler"):
                images = generate(pipeline, prompts, range(IMAGES), self.steps, self.guidance)
            chances = ClipClassifier(self.classifier, classes)(images)
            self.seen[name] = float((chances.argmax(-1) == list(classes).index(name)).double().mean())
        return self.seen[name]

    def best(self, pipeline: Pipeline, ranked: Sequence[Candidate], classes: Sequence[str]) -> Candidate:
        """The first candidate that the model generates well; the best of those looked at where none is."""
        if self.classifier is None:
            return ranked[0]
        tried = ranked[:TRIED]
        for one in tried:
            if self.looked_at(pipeline, one.name, classes) >= WELL:
                return one
        return max(tried, key=lambda one: self.seen[one.name])  # of equal ones the first


def choose_anchors(pipeline: Pipeline, concepts: Sequence[Concept], choice: Choice, anchored: bool) -> dict[str, str]:
    """The anchors of the concepts that have none, by target; each is said with its reason.

    Args:
        pipeline: the original model.
        concepts: all of the run.
        choice: among what, and how.
        anchored: whether the method puts anything in a target's place; if not, such targets get no anchor.

    Raises:
        UserError: no candidate is left.
    """
    open_ones = [concept for concept in concepts if concept.anchor == AUTO]
    if not anchored:
        return {concept.target: "" for concept in open_ones}
    targets, chosen = [*(concept.target for concept in concepts), *choice.beside], dict[str, str]()
    for concept in open_ones:
        pools = candidates_of(concept, choice.given, choice.names)
        candidates = next((pool for pool in pools if apart_from(pipeline, pool, targets)), pools[-1])
        ranked = rank_anchors(pipeline, concept, candidates, targets, choice.names)
        classes = names_beside(pipeline, [*candidates, *choice.names, *targets], [])
        best = choice.best(pipeline, ranked, classes)
        seen = f", shown by {choice.seen[best.name]:.0%} of its images" if best.name in choice.seen else ""
        why = f"the general word for kind {concept.kind}; --data.anchors names others"
        if len(candidates) > 1:
            numbers = f"similarity {best.similarity:.2f}, to its nearest names {best.crowding:.2f}{seen}"
            why = f"one of {len(ranked)} far names of {len(candidates)} ({numbers})"
        log.info(f"data.concepts: the anchor of {concept.target!r} is {best.name!r}, {why}")
        chosen[concept.target] = best.name
    return chosen
