"""A gradient attack on the prompt: a few free tokens that bring the diffusion loss of target images down.

After UnlearnDiffAtk (Zhang et al. 2024), which optimises discrete tokens by the same loss; the tokens here are any
vectors in the space of the input embeddings, which is the stronger attack.

Legend: S sets of tokens side by side, N images or samples of each, K free tokens, T tokens of a prompt, D width of the
input embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline, Tokenizer
from mace_pl.models.text_encoding import with_all_vectors

Text = tuple[Tensor, Tensor | None]  # embeddings [S, T, D'], and pooled ones [S, P] of SDXL
GUIDANCE = 7.5  # that a distilled network is told while tokens are searched


@contextmanager
def _placed(encoder: Any, free_SKD: Tensor) -> Iterator[None]:
    """Within the context the input embeddings behind the start token are the free ones, of each prompt its own."""

    def replace(module: torch.nn.Module, args: Any, embedded_STD: Tensor) -> Tensor:
        return torch.cat([embedded_STD[:, :1], free_SKD, embedded_STD[:, 1 + free_SKD.shape[1] :]], dim=1)

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def encode_attacked(pipeline: Pipeline, prompt: str, free_KD: Tensor) -> Text:
    """The text embeddings of a prompt with K free tokens between its start token and its words."""
    return encode_all_attacked(pipeline, [prompt], free_KD[None])


def encode_all_attacked(pipeline: Pipeline, prompts: Sequence[str], free_SKD: Tensor) -> Text:
    """Those of S prompts, each with K free tokens of its own.

    Args:
        pipeline: its text encoders, one, or the two of SDXL.
        prompts: S.
        free_SKD: input embeddings; of two encoders one beside the other.
    """
    backbone = backbone_of(pipeline)
    tokenizers, encoders = backbone.tokenizers, backbone.encoders
    widths = [encoder.get_input_embeddings().weight.shape[1] for encoder in encoders]
    hidden, pooled = [], None
    for tokenizer, encoder, own_SKD in zip(tokenizers, encoders, free_SKD.split(widths, dim=-1), strict=True):
        rows = [_token_ids(tokenizer, prompt, free_SKD.shape[1]) for prompt in prompts]
        with _placed(encoder, own_SKD):
            result = encoder(torch.tensor(rows, device=free_SKD.device), output_hidden_states=len(encoders) > 1)
        hidden.append(result.hidden_states[-2] if len(encoders) > 1 else result[0])
        pooled = result[0] if len(encoders) > 1 else None  # SDXL reads its second encoder's
    return torch.cat(hidden, dim=-1), pooled


def embedding_table(pipeline: Pipeline) -> tuple[Tensor, Tensor]:
    """[V, D] input embeddings of all tokens, and [D] their mean sizes; of two encoders one beside the other."""
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in backbone_of(pipeline).encoders]
    sizes = [table.square().mean().sqrt().expand(table.shape[1]) for table in tables]
    rows = min(len(table) for table in tables)
    return torch.cat([table[:rows] for table in tables], dim=1), torch.cat(sizes)


def _token_ids(tokenizer: Tokenizer, prompt: str, free: int) -> list[int]:
    """The padded tokens of a prompt, some behind its start token; which ids the free tokens replace does not matter."""
    length = tokenizer.model_max_length
    whole = with_all_vectors(tokenizer, prompt)
    words = tokenizer(whole, truncation=True, max_length=length - free).input_ids
    ids = [words[0], *[words[1]] * free, *words[1:]]
    return ids + [tokenizer.pad_token_id] * (length - len(ids))


def diffusion_loss(pipeline: Pipeline, latents: Tensor, text: Text, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mean ‖ε − ε_θ(z_t, t, text)‖², or of what the model predicts in place of ε.

    Args:
        pipeline: UNet and scheduler.
        latents: [N, C, h, w] of target images, scaled as the UNet sees them.
        text: the prompt's embeddings, [1, T, D].
        noise: [N, C, h, w].
        timesteps: [N].
    """
    return losses_of(pipeline, latents, repeated(text, len(latents)), noise, timesteps).mean()


def repeated(text: Text, times: int) -> Text:
    """Each row so many times, one after the other."""
    hidden, pooled = text
    return hidden.repeat_interleave(times, dim=0), None if pooled is None else pooled.repeat_interleave(times, dim=0)


def losses_of(pipeline: Pipeline, latents: Tensor, text: Text, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The losses [N] of which :func:`diffusion_loss` is the mean; a text of each."""
    backbone, (hidden, pooled) = backbone_of(pipeline), text
    extra = backbone.inputs(pooled, len(latents), GUIDANCE)
    predicted = backbone.predict(backbone.noised(latents, noise, timesteps), timesteps, hidden, extra)
    return (predicted - backbone.aim(latents, noise, timesteps)).square().flatten(1).mean(1)


def optimise_tokens(
    pipeline: Pipeline,
    prompt: str,
    latents: Tensor,
    tokens: int,
    steps: int,
    lr: float,
    generator: torch.Generator,
    on_step: Callable[[], None] | None = None,
) -> tuple[Tensor, list[float]]:
    """K free tokens [K, D] that minimise the diffusion loss of target images, and the loss of each step.

    Args:
        pipeline: the edited pipeline; its weights stay as they are.
        prompt: what stands behind the free tokens.
        latents: [N, C, h, w] of target images.
        tokens: K.
        steps: of Adam.
        lr: its learning rate, on embeddings that are scaled by their own mean size.
        generator: for first tokens, noise and timesteps; on the CPU, so that devices agree.
        on_step: called after each step; what it raises ends the search.
    """
    free, losses = optimise_sets(pipeline, [prompt], latents[None], tokens, steps, lr, [generator], on_step)
    return free[0], [loss[0] for loss in losses]


def optimise_sets(
    pipeline: Pipeline,
    prompts: Sequence[str],
    latents: Tensor,
    tokens: int,
    steps: int,
    lr: float,
    generators: Sequence[torch.Generator],
    on_step: Callable[[], None] | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, list[list[float]]]:
    """:func:`optimise_tokens` for S prompts in one batch: tokens [S, K, D], and of each step the losses of all sets.

    A set depends on its own prompt, images and generator alone, but for the rounding of another batch.

    Args:
        pipeline: the edited pipeline.
        prompts: of each set.
        latents: [S, N, C, h, w] of its images.
        tokens: K.
        steps: of Adam.
        lr: its learning rate.
        generators: of each set.
        on_step: called after each step; what it raises ends the search.
        project: from tokens [S, K, D] to those that the prompt has, where the gradient is taken and from where it is
            handed on as it is; the tokens themselves when None.
    """
    table, scale = embedding_table(pipeline)
    first = torch.stack([torch.randint(len(table), (tokens,), generator=g) for g in generators])
    free = (table[first.to(table.device)] / scale).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=lr)
    trained, (sets, samples), losses = backbone_of(pipeline).timesteps, latents.shape[:2], []
    for _ in range(steps):
        # of each generator the noise, then the timesteps
        drawn = [
            (torch.randn(z.shape, generator=g), torch.randint(trained, (samples,), generator=g))
            for z, g in zip(latents, generators, strict=True)
        ]
        noise, timesteps = (torch.cat(parts).to(latents.device) for parts in zip(*drawn, strict=True))
        placed = free.detach() * scale if project is None else project(free.detach() * scale)
        placed.requires_grad_(True)
        text = repeated(encode_all_attacked(pipeline, prompts, placed), samples)
        own = losses_of(pipeline, latents.flatten(0, 1), text, noise.to(latents.dtype), timesteps)
        loss = own.view(sets, samples).mean(1)
        free.grad = torch.autograd.grad(loss.sum(), [placed])[0] * scale
        optimizer.step()
        losses.append(loss.detach().tolist())
        if on_step is not None:
            on_step()
    return (free * scale).detach(), losses
