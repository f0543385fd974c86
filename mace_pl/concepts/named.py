"""What is summed of names that stay. N names, T tokens, D text width, P prompts, E width of a pooled embedding."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_pl.concepts.tokens import target_span
from mace_pl.methods.base import Tokens
from mace_pl.methods.closed_form import gram
from mace_pl.models.backbone import backbone_of
from mace_pl.models.encoded_once import encoded_once, stacked
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import encode_both

BARE = ("{}",)
#: three of them with words around the name: where many names are erased, "a rocket on a blue background" shows a
#: zombie otherwise, for a term over a name's own tokens leaves those behind it free (measured)
TEMPLATES = (
    "a photo of a {}",
    "a drawing of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a {}",
    "an image of a {} on a white background",
    "a photo of a {} in front of a wall",
    "a small {} in the corner",
    "{}",
)
#: of a style, as many: "a photo of a {}" says nothing of one
STYLE_TEMPLATES = (
    "a photo in the style of {}",
    "a photo of a flower in the style of {}",
    "a picture of a man in {} style",
    "an image of a fruit in the style of {}",
    "a drawing of a dog in the style of {}",
    "a photo of a house in the style of {}",
    "a picture of a tree in {} style",
    "a small car in the style of {}",
    "{}",
)

POWER = 2  # of what an edit would do to a name, in the half of its weight that follows from it (measured)
TINY = 1e-50  # so that names count alike where an edit moves none


@dataclass(frozen=True)
class Named:
    """Sums over names, from one encoding of each prompt; float64 on the CPU.

    Attributes:
        last: the last token of every bare name, [N, D].
        grams: D = Σ_n h_n Σ e eᵀ [D, D] by the choice of tokens that was asked for; h_n is 1 without ``harm``.
        pooled_bare: pooled embeddings of the bare names, [N, E]; None where a model has none.
        pooled: those of the prompts, [P, E], which are the bare names where no more was asked for.
        counts: h_n [N], 1 in the mean; None without ``harm``.
    """

    last: Tensor
    grams: Mapping[Tokens, Tensor]
    pooled_bare: Tensor | None = None
    pooled: Tensor | None = None
    counts: Tensor | None = None


def sum_names(
    pipeline: Pipeline,
    names: Sequence[str],
    asked: Collection[Tokens],
    styles: Collection[str] = (),
    harm: Tensor | None = None,
) -> Named | None:
    """Encode names, and sum the tokens that methods sum of their targets; None without names.

    With ``harm`` a name counts by what an edit would do to it: h_n = ½ + ½ q_n^POWER / mean q^POWER, where q_n =
    tr(D_n M) / tr(D_n) and D_n = Σ e eᵀ sums all tokens of its prompts. With M = (T − I)ᵀ A (T − I) q_n is the mean
    square by which the edit T moves keys and values, and D = Σ h_n D_n holds most firmly what would be lost otherwise.
    Half of the weight stays with all names alike, for the sake of what is near to none of them (measured).

    Args:
        pipeline: tokenizers and text encoders.
        names: what is preserved.
        asked: ``last`` and ``bare`` sum these of the bare names, the others all tokens of each of ``TEMPLATES``.
        styles: those of the names that are styles, which have ``STYLE_TEMPLATES``.
        harm: M [D, D], positive semidefinite; None where all names count alike.
    """
    if not names:
        return None
    summed = {*asked} - {"last"}
    bare_ones = summed <= {"bare"} and harm is None
    prompts_of = {False: BARE if bare_ones else TEMPLATES, True: BARE if bare_ones else STYLE_TEMPLATES}
    requests = [[template.replace("{}", name) for template in prompts_of[name in styles]] for name in names]
    tokenizer, last, sums = backbone_of(pipeline).tokenizers[0], list[Tensor](), dict[Tokens, Tensor]()
    pooled: list[Tensor] = []
    harms: list[float] = []
    harmed: dict[Tokens, Tensor] = {}
    encoded = encoded_once(lambda prompts: encode_both(pipeline, prompts), requests)
    for name, prompts, rows in zip(names, requests, encoded, strict=True):
        text, own_pooled = stacked(rows, prompts)  # the bare name is the last
        last.append(text[-1, target_span(tokenizer, "{}", name)[1] - 1].double())
        pooled += [] if own_pooled is None else [own_pooled.double()]
        whole = gram(text, text) if summed or harm is not None else text.new_zeros(0)
        if harm is not None:
            harms.append(max(float((whole * harm).sum() / whole.trace()), TINY) ** POWER)
        for choice in summed:
            own = gram(text[-1:], text[-1:]) if choice == "bare" else whole
            sums[choice] = sums.get(choice, 0) + own
            if harms:
                harmed[choice] = harmed.get(choice, 0) + harms[-1] * own
    tokens, counts = torch.stack(last), None
    if harms:
        over = len(harms) / sum(harms)
        counts = (1 + over * torch.tensor(harms, dtype=torch.float64)) / 2
        sums = {choice: (own + over * harmed[choice]) / 2 for choice, own in sums.items()}
    sums |= {"last": gram(tokens, tokens)} if "last" in asked else {}
    bare, prompted = (torch.stack([own[-1] for own in pooled]), torch.cat(pooled)) if pooled else (None, None)
    return Named(tokens, sums, bare, prompted, counts)
