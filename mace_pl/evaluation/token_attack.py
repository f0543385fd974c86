"""A gradient attack on the prompt: a few free tokens that bring the diffusion loss of target images down.

After UnlearnDiffAtk (Zhang et al. 2024), which optimises discrete tokens by the same loss; the tokens here are any
vectors in the space of the input embeddings, which is the stronger attack.

Legend: S sets of tokens side by side, N images or samples of each, K free tokens, T tokens of a prompt, D width of the
input embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline, Tokenizer
from mace_pl.models.text_encoding import text_parts, with_all_vectors


def check_attackable(pipeline: Pipeline) -> None:
    """Refuse pipelines with more than one text encoder.

    Raises:
        UserError: naming what is needed.
    """
    if len(text_parts(pipeline)[1]) != 1:
        raise UserError("model.pretrained: the attack needs a pipeline with one text encoder, as SD 1.x and 2.x have.")


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


def encode_attacked(pipeline: Pipeline, prompt: str, free_KD: Tensor) -> Tensor:
    """[1, T, D'] the text embeddings of a prompt with K free tokens between its start token and its words."""
    return encode_all_attacked(pipeline, [prompt], free_KD[None])


def encode_all_attacked(pipeline: Pipeline, prompts: Sequence[str], free_SKD: Tensor) -> Tensor:
    """[S, T, D'] the text embeddings of S prompts, each with K free tokens of its own."""
    rows = [_token_ids(pipeline.tokenizer, prompt, free_SKD.shape[1]) for prompt in prompts]
    with _placed(pipeline.text_encoder, free_SKD):
        hidden: Tensor = pipeline.text_encoder(torch.tensor(rows, device=free_SKD.device))[0]
    return hidden


def _token_ids(tokenizer: Tokenizer, prompt: str, free: int) -> list[int]:
    """The padded tokens of a prompt, some behind its start token; which ids the free tokens replace does not matter."""
    length = tokenizer.model_max_length
    whole = with_all_vectors(tokenizer, prompt)
    words = tokenizer(whole, truncation=True, max_length=length - free).input_ids
    ids = [words[0], *[words[1]] * free, *words[1:]]
    return ids + [tokenizer.pad_token_id] * (length - len(ids))


def diffusion_loss(pipeline: Pipeline, latents: Tensor, text_1TD: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mean ‖ε − ε_θ(z_t, t, text)‖², or of what the model predicts in place of ε.

    Args:
        pipeline: UNet and scheduler.
        latents: [N, C, h, w] of target images, scaled as the UNet sees them.
        text_1TD: the prompt's embeddings.
        noise: [N, C, h, w].
        timesteps: [N].
    """
    return _errors(pipeline, latents, text_1TD.expand(len(latents), -1, -1), noise, timesteps).mean()


def _errors(pipeline: Pipeline, latents: Tensor, text: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The squares [N, C, h, w] of which :func:`diffusion_loss` is the mean; a text [N, T, D] of each."""
    backbone = backbone_of(pipeline)
    predicted = backbone.predict(backbone.noised(latents, noise, timesteps), timesteps, text)
    return (predicted - backbone.aim(latents, noise, timesteps)).square()


def optimise_tokens(
    pipeline: Pipeline, prompt: str, latents: Tensor, tokens: int, steps: int, lr: float, generator: torch.Generator
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
    """
    free, losses = optimise_sets(pipeline, [prompt], latents[None], tokens, steps, lr, [generator])
    return free[0], [loss[0] for loss in losses]


def optimise_sets(
    pipeline: Pipeline,
    prompts: Sequence[str],
    latents: Tensor,
    tokens: int,
    steps: int,
    lr: float,
    generators: Sequence[torch.Generator],
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
    """
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    first = torch.stack([torch.randint(len(table), (tokens,), generator=g) for g in generators])
    scale = table.square().mean().sqrt()
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
        text = encode_all_attacked(pipeline, prompts, free * scale).repeat_interleave(samples, dim=0)
        errors = _errors(pipeline, latents.flatten(0, 1), text, noise.to(latents.dtype), timesteps)
        loss = errors.view(sets, -1).mean(1)
        (free.grad,) = torch.autograd.grad(loss.sum(), [free])
        optimizer.step()
        losses.append(loss.detach().tolist())
    return (free * scale).detach(), losses
