"""What is asked of the models: targets, the names beside them, and the judges that see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mace_pl.concepts.concept import read_names
from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.words import neighbours
from mace_pl.models.text_encoding import names_beside
from mace_pl.run import Run
from mace_pl.stages.again import Again
from mace_pl.tuning.measure import Judge, seeing
from mace_pl.tuning.prompts import LARGEST, Part, Row, roles_of, rows_of


def preserved_names(run: Run, again: Again, given: list[str] | str | None) -> list[str]:
    """The names that are scored beside the targets.

    Raises:
        UserError: there are none.
    """
    names = read_names(run.config["model"].get("domain_names") if given is None else given, "names")
    left = names_beside(again.pipeline, names, run.targets)
    if not left:
        raise UserError("names: the run has no model.domain_names to score beside its targets. Give a list of others.")
    return left


@dataclass(frozen=True)
class Asking:
    """What is asked of the models.

    Attributes:
        run: the run.
        again: its model.
        clip: the classifier, which says which names are next to the targets.
        names: what is preserved.
        sentences: a file of them, or None.
        counts: names next to each target, and others, that are scored.
        seed: of the draw.
    """

    run: Run
    again: Again
    clip: ClipEncoder
    names: Sequence[str]
    sentences: str | None
    counts: tuple[int, int]
    seed: int

    def rows(self, part: Part, seeds: int, pilot: int) -> list[Row]:
        """The images of a part; the confirmation has other names beside the near ones, and twice as many."""
        near, far = self.counts
        targets, kinds = self.run.targets, {c["target"]: c.get("kind", "object") for c in self.run.concepts}
        texts = self.clip.text(targets), self.clip.text(self.names)
        found = neighbours(targets, self.names, *texts, self.clip.tokenizer, near).values()
        next_to = list(dict.fromkeys(name for own in found for name in own["embedding"] + own["tokens"]))[:LARGEST]
        roles = roles_of(targets, next_to, self.names, far * (1 + part), self.seed + part)
        kind = "person" if set(kinds.values()) == {"person"} else "object"
        return rows_of(roles, {name: kinds.get(name, kind) for name in roles}, part, self.sentences, seeds, pilot)

    def seeing(self, judge: Judge) -> Callable[[Sequence[Any]], list[str]]:
        """What a judge sees, among targets and names."""
        return seeing(judge, self.clip, [*self.run.targets, *self.names])
