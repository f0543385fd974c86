"""What judges see in images, one beside the other, over the same classes.

Legend: N images, C classes, J judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipEncoder
from mace_pl.evaluation.emptiness import empty
from mace_pl.evaluation.words import Words

CLIP: Literal["clip"] = "clip"  # the classifier, among judges
Seen = tuple[Tensor, Tensor, Tensor]  # [N] the class or −1, [N, C] probabilities, [N] bool: nothing to judge


def judge_labels(judges: Sequence[nn.Module | str]) -> list[str]:
    """A name for each judge: its class, with a number where several are of one; CLIP is ``clip``."""
    kinds = [judge if isinstance(judge, str) else type(judge).__name__ for judge in judges]
    return [kind if kinds.count(kind) == 1 else f"{kind} {kinds[:i].count(kind) + 1}" for i, kind in enumerate(kinds)]


class ByClip(nn.Module):
    """The classifier: the class whose text is nearest to an image.

    Args:
        clip: its encoder.
        classes: C names.
        templates: the prompts of a class; an image is judged by those in its own template.
    """

    def __init__(self, clip: ClipEncoder, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        self.clip = clip
        texts = [clip.text([t.replace("{}", name) for name in classes]) for t in templates]
        self.register_buffer("texts", torch.stack(texts), persistent=False)

    def forward(self, images: Sequence[Image.Image], embedded_ND: Tensor, template: int) -> Seen:
        """What is seen in N images of a template, by their embeddings."""
        texts: Any = self.texts
        chances = self.clip.probabilities(embedded_ND, texts[template])
        return chances.argmax(-1), chances, torch.zeros(len(images), dtype=torch.bool, device=chances.device)


class ByOwnNames(nn.Module):
    """A judge with names of its own, of which some are classes.

    Args:
        judge: a :class:`mace_pl.evaluation.clip.Judge`.
        classes: C names.
        setting: the options that gave them.

    Raises:
        UserError: it does not know one.
    """

    # the judge is a module and a Judge: no type says both
    def __init__(self, judge: Any, classes: Sequence[str], setting: str = "data.names or model.names") -> None:
        super().__init__()
        self.judge = judge
        unknown = [name for name in classes if name not in judge.names]
        if unknown:
            raise UserError(f"{setting}: the judge does not know {', '.join(unknown)}. It knows {judge.names}.")
        self.columns = [judge.names.index(name) for name in classes]
        self.places = torch.full((len(judge.names),), -1)
        self.places[self.columns] = torch.arange(len(classes))

    def forward(self, images: Sequence[Image.Image], embedded_ND: Tensor, template: int) -> Seen:
        """What is seen in N images, by themselves."""
        chances = self.judge(images)
        undetected = chances.sum(-1) == 0
        seen = self.places.to(chances.device)[chances.argmax(-1)].masked_fill(undetected, -1)
        return seen, chances[:, self.columns], undetected


class Judges(nn.Module):
    """Several judges over the same classes.

    Args:
        judges: J of them; ``clip`` is the classifier.
        clip: the classifier's encoder.
        words: what images are generated of, and the classes.
        templates: of the prompts.
        strict: an empty image shows nothing, whatever a judge takes it for.
    """

    def __init__(
        self,
        judges: Sequence[nn.Module | str],
        clip: ClipEncoder,
        words: Words,
        templates: Sequence[str],
        strict: bool,
    ) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            ByClip(clip, words.classes, templates) if judge == CLIP else ByOwnNames(judge, words.classes)
            for judge in judges
        )
        self.register_buffer("right_WC", words.right(), persistent=False)
        self.strict = strict

    def forward(
        self, images: Sequence[Image.Image], embedded_ND: Tensor, template: int, places: Sequence[int]
    ) -> dict[str, Tensor]:
        """``seen``, ``undetected`` and ``probability`` [N, J], and ``empty`` [N], as
        :class:`mace_pl.methods.metrics.ImageScores` takes them.

        Args:
            images: N images.
            embedded_ND: by the classifier.
            template: of their prompts.
            places: which of the words each is of.
        """
        right_WC: Any = self.right_WC
        right_NC = right_WC[list(places)]
        blank = empty(images).to(right_NC.device)
        found = [judge(images, embedded_ND, template) for judge in self.each]
        seen = torch.stack([one.to(right_NC.device) for one, _, _ in found], dim=1)
        chances = torch.stack([(one.to(right_NC.device) * right_NC).sum(-1) for _, one, _ in found], dim=1)
        undetected = torch.stack([one.to(right_NC.device) for _, _, one in found], dim=1)
        if self.strict:
            seen, chances = seen.masked_fill(blank[:, None], -1), chances.masked_fill(blank[:, None], 0)
        return {"seen": seen, "undetected": undetected, "probability": chances, "empty": blank}
