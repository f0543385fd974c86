"""What is known before training: tokens, names that share them, and what the base model generates of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.tokens import attended_positions, token_span
from mace_pl.errors import UserError
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline, Tokenizer
from mace_pl.models.text_encoding import name_tokens, with_all_vectors

END = "</w>"  # of a word, in the vocabulary of CLIP
KNOWN = 0.5  # accuracy of the base model's own images below which an edit can hardly be judged
COLUMNS = ("target", "its tokens", "anchor", "its tokens", "base model", "shares tokens with")


def check_prompts(pipeline: Pipeline, concepts: Sequence[Concept], templates: Sequence[Sequence[str]]) -> None:
    """Find every target in its templates.

    Raises:
        UserError: a template that does not show its target, tokenizers that split it differently, two targets of
            the same tokens, or an anchor with those of its target.
    """
    tokenizers = backbone_of(pipeline).tokenizers
    known: dict[Any, str] = {}
    for concept in concepts:
        if concept.anchor and name_tokens(pipeline, concept.anchor) == name_tokens(pipeline, concept.target):
            raise UserError(
                f"data.concepts: the anchor {concept.anchor!r} has the tokens of its target {concept.target!r} in this "
                f"model: nothing would be erased. Choose another anchor."
            )
        other = known.setdefault(name_tokens(pipeline, concept.target), concept.target)
        if other != concept.target:
            raise UserError(
                f"data.concepts: the targets {other!r} and {concept.target!r} have the same tokens in this model: it "
                f"cannot tell them apart. Remove one."
            )
    for concept, prompts in zip(concepts, templates, strict=True):
        for template in prompts:
            by_tokenizer = [attended_positions(tokenizer, template, concept.target) for tokenizer in tokenizers]
            if any(positions != by_tokenizer[0] for positions in by_tokenizer):
                raise UserError(
                    f"model.pretrained: its tokenizers split {concept.target!r} in {template!r} differently. Use a "
                    f"model whose text encoders share a vocabulary."
                )


def preflight(
    pipeline: Pipeline,
    concepts: Sequence[Concept],
    templates: Sequence[Sequence[str]],
    preserved: Sequence[str],
    seen: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row per concept.

    Args:
        pipeline: the base model.
        concepts: what is erased.
        templates: of each concept.
        preserved: names to preserve.
        seen: how often a classifier saw each target in the base model's images; empty without a classifier.

    Returns:
        Of each concept its tokens and its anchor's, their positions [start, stop) in every template, the tokens that
        it shares with preserved names and with other targets, and the accuracy (None where it is not known).
    """
    tokenizer = backbone_of(pipeline).tokenizers[0]
    names = list(dict.fromkeys([*preserved, *(c.target for c in concepts)]))
    rows = []
    for concept, prompts in zip(concepts, templates, strict=True):
        tokens = _tokens(tokenizer, concept.target)
        shared = {name: sorted(set(tokens) & set(_tokens(tokenizer, name))) for name in names if name != concept.target}
        spans = [
            {"template": t, **{k: list(token_span(tokenizer, t, getattr(concept, k))) for k in ("target", "anchor")}}
            for t in prompts
        ]
        rows.append(
            {
                "target": concept.target,
                "anchor": concept.anchor,
                "target_tokens": tokens,
                "anchor_tokens": _tokens(tokenizer, concept.anchor),
                "spans": spans,
                "shares_tokens_with": {name: sharing for name, sharing in shared.items() if sharing},
                "accuracy": seen.get(concept.target),
            }
        )
    return rows


def show_preflight(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as a table, and a line for each target that the base model hardly generates."""
    table = Table(title="Before training")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.0%} seen"
        shared = ", ".join(f"{name} ({' '.join(tokens)})" for name, tokens in row["shares_tokens_with"].items())
        tokens, anchor = (" ".join(row[f"{k}_tokens"]) for k in ("target", "anchor"))
        table.add_row(row["target"], tokens, row["anchor"], anchor, accuracy, shared or "–")
    console.print(table)
    if any(token.endswith(END) for row in rows for token in row["target_tokens"]):
        console.print(f"Tokens: pieces of words, as the tokenizer spells them; {END} is the end of a word.")
    for row in rows:
        if row["accuracy"] is not None and row["accuracy"] < KNOWN:
            often = f"seen in {row['accuracy']:.0%} of its images"
            console.print(
                f"The base model hardly generates {row['target']!r} ({often}): look at them.", highlight=False
            )


def _tokens(tokenizer: Tokenizer, words: str) -> list[str]:
    """The words' own tokens, without start and end, as the tokenizer spells them."""
    tokens: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(with_all_vectors(tokenizer, words)).input_ids[1:-1])
    return tokens
