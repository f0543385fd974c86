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


@dataclass(frozen=True)
class Named:
    """Sums over names, from one encoding of each prompt; float64 on the CPU.

    Attributes:
        last: the last token of every bare name, [N, D].
        grams: D = Σ e eᵀ [D, D] by the choice of tokens that was asked for.
        pooled_bare: pooled embeddings of the bare names, [N, E]; None where a model has none.
        pooled: those of the prompts, [P, E], which are the bare names where no more was asked for.
    """

    last: Tensor
    grams: Mapping[Tokens, Tensor]
    pooled_bare: Tensor | None = None
    pooled: Tensor | None = None


def sum_names(pipeline: Pipeline, names: Sequence[str], asked: Collection[Tokens]) -> Named | None:
    """Encode names, and sum the tokens that methods sum of their targets; None without names.

    Args:
        pipeline: tokenizers and text encoders.
        names: what is preserved.
        asked: ``last`` and ``bare`` sum these of the bare names, the others all tokens of each of ``TEMPLATES``.
    """
    if not names:
        return None
    templates = BARE if all(choice in ("last", "bare") for choice in asked) else TEMPLATES
    requests = [[template.replace("{}", name) for template in templates] for name in names]
    tokenizer, last, sums = backbone_of(pipeline).tokenizers[0], list[Tensor](), dict[Tokens, Tensor]()
    pooled: list[Tensor] = []
    encoded = encoded_once(lambda prompts: encode_both(pipeline, prompts), requests)
    for name, prompts, rows in zip(names, requests, encoded, strict=True):
        text, own_pooled = stacked(rows, prompts)  # the bare name is the last
        last.append(text[-1, target_span(tokenizer, "{}", name)[1] - 1].double())
        pooled += [] if own_pooled is None else [own_pooled.double()]
        for choice in asked:
            if choice != "last":
                own = gram(text[-1:], text[-1:]) if choice == "bare" else gram(text, text)
                sums[choice] = sums[choice].add_(own) if choice in sums else own
    tokens = torch.stack(last)
    sums |= {"last": gram(tokens, tokens)} if "last" in asked else {}
    bare, prompted = (torch.stack([own[-1] for own in pooled]), torch.cat(pooled)) if pooled else (None, None)
    return Named(tokens, sums, bare, prompted)
