"""Domain statistics of names that stay, encoded when a run starts in place of a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mace_pl.closed_form import Preservation, gram
from mace_pl.paths import resolve
from mace_pl.text import encode_prompts

TEMPLATES = (
    "a photo of a {}",
    "a drawing of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a {}",
    "{}",
)


def read_names(given: Sequence[str] | str | None) -> list[str]:
    """The names of a list, or of a text file with one on each line; each once, in order.

    Raises:
        ValueError: no such file, no text in UTF-8, or no name in it.
    """
    if isinstance(given, str):
        path = resolve(given)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"model.domain_names={given} cannot be read as text ({error}). Give a list of names, or a file with a "
                f"name on each line."
            ) from error
        given = [line.strip() for line in lines]
        if not any(given):
            raise ValueError(f"model.domain_names: {path} holds no name. Write one on each line.")
    return list(dict.fromkeys(name.strip() for name in given or [] if name.strip()))


def named_statistics(pipeline: Any, names: Sequence[str], targets: Collection[str]) -> Tensor | None:
    """Σ e eᵀ over all tokens of every name in each of ``TEMPLATES``, [D, D] in float64; None without names.

    Args:
        pipeline: tokenizers and text encoders.
        names: what stays.
        targets: what is erased: left out where ``names`` hold it, whatever its case.
    """
    erased = {target.casefold() for target in targets}
    prompts = [
        template.replace("{}", name) for name in names if name.casefold() not in erased for template in TEMPLATES
    ]
    tokens = (encode_prompts(pipeline, prompts[start : start + 64]).cpu() for start in range(0, len(prompts), 64))
    grams = [gram(part, part) for part in tokens]
    return torch.stack(grams).sum(dim=0) if grams else None


def with_domain(keep: Preservation, added: Tensor | None) -> Preservation:
    """``keep`` with sums added to those of its domain files."""
    if added is None:
        return keep
    return replace(keep, domain=added if keep.domain is None else keep.domain + added)
