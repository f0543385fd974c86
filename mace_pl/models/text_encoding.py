"""Text embeddings as a pipeline feeds them to its cross-attention, and the identity of the encoder that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.models.protocols import Pipeline, Tokenizer


def text_parts(pipeline: Pipeline) -> tuple[list[Tokenizer], list[Any]]:
    """The pipeline's tokenizers and text encoders, in order (one pair for SD 1.x and 2.x, two for SDXL)."""
    suffixes = ("", "_2")
    tokenizers = [getattr(pipeline, f"tokenizer{s}", None) for s in suffixes]
    encoders = [getattr(pipeline, f"text_encoder{s}", None) for s in suffixes]
    return [t for t in tokenizers if t is not None], [e for e in encoders if e is not None]


def with_all_vectors(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt as the pipeline feeds it: a textual inversion of several vectors stands for all its tokens."""
    converted: str = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    return converted


def name_tokens(pipeline: Pipeline, name: str) -> tuple[tuple[int, ...], ...]:
    """The tokens of a name in each of the pipeline's tokenizers: names of equal tokens are one to the model."""
    return tuple(tuple(t(with_all_vectors(t, name)).input_ids) for t in text_parts(pipeline)[0])


def check_free_tokens(pipeline: Pipeline, count: int, setting: str) -> None:
    """Refuse more free tokens than a prompt has room for beside its begin, a word and its end.

    Raises:
        UserError: naming the setting.
    """
    length = min(t.model_max_length for t in text_parts(pipeline)[0])
    if count > length - 3:
        raise UserError(f"{setting}={count} must be at most {length - 3}: the text encoder reads {length} tokens.")


def spelled_as(pipeline: Pipeline, names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names, those of equal tokens with one of ``others`` in that one's spelling."""
    spellings = {name_tokens(pipeline, other): other for other in reversed(others)}
    return [name if name in others else spellings.get(name_tokens(pipeline, name), name) for name in names]


def names_beside(pipeline: Pipeline, names: Sequence[str], others: Iterable[str]) -> list[str]:
    """The names whose tokens are neither those of ``others`` nor of an earlier one, whatever their spelling."""
    seen = {name_tokens(pipeline, other) for other in others}
    beside = []
    for name in names:
        tokens = name_tokens(pipeline, name)
        if tokens not in seen:
            seen.add(tokens)
            beside.append(name)
    return beside


@torch.no_grad()
def encode_both(
    pipeline: Pipeline, prompts: Sequence[str], batch_size: int = 64, length: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Embeddings of prompts, [N, T, D], padded to the tokenizer's ``model_max_length``, padding included.

    The pipeline's own ``encode_prompt`` makes them, so whichever layer (penultimate, two encoders side by side) the
    pipeline feeds to ``attn2`` is what the statistics see.

    Args:
        pipeline: tokenizers and text encoders.
        prompts: N texts.
        batch_size: prompts that are encoded at once.
        length: T to pad to, and to cut at, in place of ``model_max_length``.

    Returns:
        The embeddings, and the pooled ones [N, P] where the pipeline has them (SDXL).
    """
    device = text_parts(pipeline)[1][0].device
    chunks, pooled = [], []
    with padded_to(pipeline, length):
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            encoded = pipeline.encode_prompt(
                batch, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            chunks.append(encoded[0])
            pooled += [encoded[2]] if len(encoded) > 2 else []
    return torch.cat(chunks), torch.cat(pooled) if pooled else None


def encode_prompts(
    pipeline: Pipeline, prompts: Sequence[str], batch_size: int = 64, length: int | None = None
) -> Tensor:
    """The first of :func:`encode_both`: embeddings [N, T, D] as cross-attention sees them."""
    return encode_both(pipeline, prompts, batch_size, length)[0]


@contextmanager
def padded_to(pipeline: Pipeline, length: int | None) -> Iterator[None]:
    """Within the context the pipeline pads prompts to ``length`` tokens; to its own length where that is None."""
    tokenizers = text_parts(pipeline)[0]
    before = [tokenizer.model_max_length for tokenizer in tokenizers]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = length or tokenizer.model_max_length
    try:
        yield
    finally:
        for tokenizer, own in zip(tokenizers, before, strict=True):
            tokenizer.model_max_length = own


def token_counts(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """[N] int64: the tokens of each prompt from its start token to its end token, cut at ``model_max_length``.

    Raises:
        UserError: the pipeline's tokenizers do not agree.
    """
    counts = []
    for tokenizer in text_parts(pipeline)[0]:
        whole = [with_all_vectors(tokenizer, prompt) for prompt in prompts]
        ids = tokenizer(whole, truncation=True, max_length=tokenizer.model_max_length).input_ids
        counts.append([len(own) for own in ids])
    if any(own != counts[0] for own in counts):
        raise UserError("data.tokens=caption: the model's two tokenizers split captions differently. Use all.")
    return torch.tensor(counts[0], dtype=torch.int64)


def ignores_padding(pipeline: Pipeline) -> bool:
    """Whether embeddings of a prompt do not depend on the padding behind it, as with CLIP's causal encoders."""
    prompt = ["a photo"]
    length = int(token_counts(pipeline, prompt)[0])
    whole, short = encode_prompts(pipeline, prompt)[:, :length], encode_prompts(pipeline, prompt, length=length)
    return bool((whole - short).norm() <= 1e-4 * whole.norm())


def encoder_fingerprint(pipeline: Pipeline) -> str:
    """SHA-256 over the weights (as float32) and the vocabulary of the pipeline's text encoders and tokenizers.

    Two folders that hold the same encoder have the same fingerprint, whatever their paths, the storage dtype of equal
    values, or the version of transformers: earlier ones begin all names of a CLIPTextModel with ``text_model.``.
    """
    digest = hashlib.sha256()
    tokenizers, encoders = text_parts(pipeline)
    for tokenizer in tokenizers:
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest.update(repr((vocabulary, tokenizer.model_max_length, tokenizer.pad_token)).encode())
    for encoder in encoders:
        weights = encoder.state_dict()
        wrapper = "text_model." if all(name.startswith("text_model.") for name in weights) else ""
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name.removeprefix(wrapper)}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
