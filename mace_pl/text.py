"""Text embeddings as a pipeline feeds them to its cross-attention, and the identity of the encoder that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def text_parts(pipeline: Any) -> tuple[list[Any], list[Any]]:
    """The pipeline's tokenizers and text encoders, in order (one pair for SD 1.x and 2.x, two for SDXL)."""
    suffixes = ("", "_2")
    tokenizers = [getattr(pipeline, f"tokenizer{s}", None) for s in suffixes]
    encoders = [getattr(pipeline, f"text_encoder{s}", None) for s in suffixes]
    return [t for t in tokenizers if t is not None], [e for e in encoders if e is not None]


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embeddings of prompts, [N, T, D], padded to the tokenizer's ``model_max_length``, padding included.

    The pipeline's own ``encode_prompt`` makes them, so whichever layer (penultimate, two encoders side by side) the
    pipeline feeds to ``attn2`` is what the statistics see.
    """
    device = text_parts(pipeline)[1][0].device
    chunks = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        encoded = pipeline.encode_prompt(
            batch, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        chunks.append(encoded[0])
    return torch.cat(chunks)


def encoder_fingerprint(pipeline: Any) -> str:
    """SHA-256 over the weights (as float32) and the vocabulary of the pipeline's text encoders and tokenizers.

    Two folders that hold the same encoder have the same fingerprint, whatever their paths or storage dtype of equal
    values.
    """
    digest = hashlib.sha256()
    tokenizers, encoders = text_parts(pipeline)
    for tokenizer in tokenizers:
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest.update(repr((vocabulary, tokenizer.model_max_length, tokenizer.pad_token)).encode())
    for encoder in encoders:
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
