"""Which tokens of a prompt are whose: the target's own, those beside it, those that the loss looks at."""

from __future__ import annotations

from typing import Literal

from mace_pl.errors import UserError
from mace_pl.models.protocols import Tokenizer
from mace_pl.models.text_encoding import with_all_vectors

SHOWN = 80  # characters of a name in a message: one that is too long for a prompt may be a whole page


def _tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    whole, length = with_all_vectors(tokenizer, prompt), tokenizer.model_max_length
    ids: list[int] = tokenizer(whole, padding="max_length", truncation=True, max_length=length).input_ids
    return ids


def _length(tokenizer: Tokenizer, prompt: str) -> int:
    return len(tokenizer(with_all_vectors(tokenizer, prompt)).input_ids)


def aligned_positions(tokenizer: Tokenizer, target_prompt: str, anchor_prompt: str) -> tuple[list[int], list[int]]:
    """Positions of the co-existing tokens in a target prompt and in its anchor prompt, lists of equal length.

    The common prefix and the common suffix (end token and padding included) of the two prompts co-exist. Where target
    and anchor have different token counts the suffixes start at different positions, and the longer tail is cut.
    """
    target, anchor = _tokens(tokenizer, target_prompt), _tokens(tokenizer, anchor_prompt)
    size = len(target)
    target_end = min(_length(tokenizer, target_prompt), size)
    anchor_end = min(_length(tokenizer, anchor_prompt), size)
    prefix = 0
    while prefix < min(target_end, anchor_end) and target[prefix] == anchor[prefix]:
        prefix += 1
    if prefix == min(target_end, anchor_end) == max(target_end, anchor_end):
        return list(range(size)), list(range(size))  # the same prompt
    suffix = 0
    limit = min(target_end, anchor_end) - prefix
    while suffix < limit and target[target_end - 1 - suffix] == anchor[anchor_end - 1 - suffix]:
        suffix += 1
    target_tail, anchor_tail = range(target_end - suffix, size), range(anchor_end - suffix, size)
    length = min(len(target_tail), len(anchor_tail))
    return [*range(prefix), *target_tail[:length]], [*range(prefix), *anchor_tail[:length]]


def token_span(tokenizer: Tokenizer, template: str, words: str) -> tuple[int, int]:
    """Positions [start, stop) of the words' own tokens in the filled template, wherever the tokenizer cuts it."""
    before = template.split("{}")[0]
    # tokens are counted on the text up to the words, so that words which occur elsewhere too are found here
    start = _length(tokenizer, before.strip()) - 1 if before.strip() else 1
    return start, _length(tokenizer, (before + words).strip()) - 1


def target_span(tokenizer: Tokenizer, template: str, target: str) -> tuple[int, int]:
    """Positions [start, stop) of the target's own tokens in the filled template.

    Raises:
        UserError: truncation at the tokenizer's length cuts the target, or it has no token of its own.
    """
    size = tokenizer.model_max_length
    start, stop = token_span(tokenizer, template, target)
    if stop <= start or stop > size - 1:
        name = target if len(target) <= SHOWN else f"{target[:SHOWN]}…"
        raise UserError(
            f"data.templates: {template!r} does not show the target {name!r}: its tokens are {start} to {stop} of "
            f"{size}. Shorten the template or the target, which may be a name to preserve (model.domain_names)."
        )
    return start, stop


def attended_positions(tokenizer: Tokenizer, template: str, target: str, padding: bool = True) -> list[bool]:
    """Which of the T tokens the loss looks at: the target's own and, with ``padding``, the end token and padding."""
    start, stop = target_span(tokenizer, template, target)
    size = tokenizer.model_max_length
    end = min(_length(tokenizer, template.replace("{}", target)), size) - 1
    return [start <= i < stop or (padding and i >= end) for i in range(size)]


def matched_positions(
    tokenizer: Tokenizer, template: str, target: str, anchor: str, choice: Literal["coexisting", "all", "bare", "last"]
) -> tuple[list[int], list[int]]:
    """Positions in the target's prompt and in the anchor's whose tokens a closed form pairs, lists of equal length.

    Args:
        tokenizer: the pipeline's.
        template: of both prompts.
        target: what is erased.
        anchor: what stands in its place.
        choice: ``coexisting`` (see :func:`aligned_positions`), ``all`` or ``bare`` position by position, or ``last``,
            the last token of each of the two names.
    """
    if choice in ("all", "bare"):
        every = list(range(tokenizer.model_max_length))
        return every, every
    if choice == "last":
        return [target_span(tokenizer, template, target)[1] - 1], [target_span(tokenizer, template, anchor)[1] - 1]
    return aligned_positions(tokenizer, template.replace("{}", target), template.replace("{}", anchor))
