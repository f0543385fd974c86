"""How much an edit erases and preserves, by images of prompts that the original answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.emptiness import empty
from mace_pl.evaluation.judges import CLIP, ByClip, ByOwnNames, judge_labels
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.tuning.prompts import Row

Judge = nn.Module | Literal["clip"]
Sees = Callable[[Sequence[Image.Image]], list[str]]


@dataclass(frozen=True)
class Scores:
    """What an edit does, as ``test`` names it.

    Attributes:
        acc_e: the mean over levels of how often images still show their target.
        acc_s: the mean of near and other preserved names: how often they are seen.
    """

    acc_e: float
    acc_s: float

    @property
    def h(self) -> float:
        """The harmonic mean of 1 − acc_e and acc_s."""
        erased = 1 - self.acc_e
        return 2 * erased * self.acc_s / (erased + self.acc_s) if erased + self.acc_s else 0.0

    def __str__(self) -> str:
        return f"Acc_e {self.acc_e:.3f}, Acc_s {self.acc_s:.3f}, H {self.h:.3f}"


def seeing(judge: nn.Module | str, clip: ClipEncoder, classes: Sequence[str]) -> Sees:
    """What a judge sees in images: the name of each, "" where nothing is seen.

    Args:
        judge: it, or ``clip``, the classifier.
        clip: the classifier.
        classes: what it chooses among.

    Raises:
        UserError: it does not know a name.
    """
    by_clip = judge == CLIP
    judging = ByClip(clip, classes, ["a photo of a {}"]) if by_clip else ByOwnNames(judge, classes, "names")

    @torch.no_grad()
    def seen(images: Sequence[Image.Image]) -> list[str]:
        embedded = clip.image(images) if by_clip else torch.zeros(len(images), 0)
        found, _, undetected = judging(images, embedded, 0)
        nothing = empty(images) | undetected.cpu() | (found.cpu() < 0)
        return ["" if none else classes[int(i)] for i, none in zip(found, nothing, strict=True)]

    return seen


class Measure:
    """Scores edits of a model by the rows that the original answers.

    Args:
        pipeline: the model; its keys and values are those of the last edit that was scored.
        rows: the images that are asked for.
        sees: a judge.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        batch_size: images at once.

    Raises:
        UserError: the original answers no prompt of a target, or none of a preserved name.
    """

    def __init__(
        self, pipeline: Pipeline, rows: Sequence[Row], sees: Sees, steps: int, guidance: float, batch_size: int
    ) -> None:
        self.pipeline, self.sees = pipeline, sees
        self.settings = (steps, guidance, batch_size)
        self.rows = list(rows)
        answered = self.seen(self.rows)
        self.asked, self.rows = len(rows), [row for row, right in zip(rows, answered, strict=True) if right]
        for what, there in (
            ("the targets", any(row.role == "target" for row in self.rows)),
            ("the names", any(row.role != "target" for row in self.rows)),
        ):
            if not there:
                raise UserError(
                    f"tune: the judge sees none of {what} in the original's images, so nothing can be searched. Raise "
                    f"--seeds or --steps, or give another --judge."
                )

    def seen(self, rows: Sequence[Row]) -> list[bool]:
        """Whether the image of each row shows its name, by the weights that the model has now."""
        images = generate(self.pipeline, [row.prompt for row in rows], [row.seed for row in rows], *self.settings)
        batch = self.settings[-1]
        found = [name for i in range(0, len(images), batch) for name in self.sees(images[i : i + batch])]
        return [name == row.name for name, row in zip(found, rows, strict=True)]

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Put an edit's weights into the model."""
        backbone_of(self.pipeline).set_key_values(weights)

    def score(self, rows: Sequence[Row], known: Mapping[Row, bool] | None = None) -> dict[Row, bool]:
        """What is seen in rows, of which some may be known."""
        known = known or {}
        left = [row for row in rows if row not in known]
        return dict(known) | (dict(zip(left, self.seen(left), strict=True)) if left else {})


def scores(seen: Mapping[Row, bool]) -> Scores:
    """Means over levels of the targets, and over near and other names: each counts the same."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for row, right in seen.items():
        groups.setdefault(("target", row.level) if row.role == "target" else ("preserved", row.role), []).append(right)
    means = {group: sum(rights) / len(rights) for group, rights in groups.items()}
    both = ([value for (side, _), value in means.items() if side == wanted] for wanted in ("target", "preserved"))
    erased, preserved = (sum(values) / len(values) if values else 0.0 for values in both)
    return Scores(erased, preserved)


def says(judge: Judge) -> list[Any]:
    """What tells a judge from another: its class, and a sum over each of its weights."""
    weights = {} if isinstance(judge, str) else judge.state_dict()
    return [judge_labels([judge])[0], *(float(weight.double().sum()) for weight in weights.values())]
