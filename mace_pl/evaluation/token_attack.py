"""A gradient attack on the prompt: a few free tokens that bring the diffusion loss of target images down.

After UnlearnDiffAtk (Zhang et al. 2024), which optimises discrete tokens by the same loss; the tokens here are any
vectors in the space of the input embeddings, which is the stronger attack.

Legend: N images or samples, K free tokens, T tokens of a prompt, D width of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import text_parts, with_all_vectors


def check_attackable(pipeline: Pipeline) -> None:
    """Refuse pipelines with more than one text encoder.

    Raises:
        UserError: naming what is needed.
    """
    if len(text_parts(pipeline)[1]) != 1:
        raise UserError("model.pretrained: the attack needs a pipeline with one text encoder, as SD 1.x and 2.x have.")


@contextmanager
def _placed(encoder: Any, free_KD: Tensor) -> Iterator[None]:
    """Within the context the input embeddings behind the start token are the free ones."""

    def replace(module: torch.nn.Module, args: Any, embedded_NTD: Tensor) -> Tensor:
        n, k = len(embedded_NTD), len(free_KD)
        return torch.cat([embedded_NTD[:, :1], free_KD.expand(n, -1, -1), embedded_NTD[:, 1 + k :]], dim=1)

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def encode_attacked(pipeline: Pipeline, prompt: str, free_KD: Tensor) -> Tensor:
    """[1, T, D'] the text embeddings of a prompt with K free tokens between its start token and its words."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    length = tokenizer.model_max_length
    whole = with_all_vectors(tokenizer, prompt)
    words = tokenizer(whole, truncation=True, max_length=length - len(free_KD)).input_ids
    ids = [words[0], *[words[1]] * len(free_KD), *words[1:]]  # which ids the free tokens replace does not matter
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    with _placed(encoder, free_KD):
        hidden: Tensor = encoder(torch.tensor([ids], device=free_KD.device))[0]
    return hidden


def diffusion_loss(pipeline: Pipeline, latents: Tensor, text_1TD: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mean ‖ε − ε_θ(z_t, t, text)‖², or of what the model predicts in place of ε.

    Args:
        pipeline: UNet and scheduler.
        latents: [N, C, h, w] of target images, scaled as the UNet sees them.
        text_1TD: the prompt's embeddings.
        noise: [N, C, h, w].
        timesteps: [N].
    """
    backbone = backbone_of(pipeline)
    noisy = backbone.noised(latents, noise, timesteps)
    predicted = backbone.predict(noisy, timesteps, text_1TD.expand(len(latents), -1, -1))
    return (predicted - backbone.aim(latents, noise, timesteps)).square().mean()


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
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    first = torch.randint(len(table), (tokens,), generator=generator)
    scale = table.square().mean().sqrt()
    free = (table[first.to(table.device)] / scale).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=lr)
    trained, losses = backbone_of(pipeline).timesteps, []
    for _ in range(steps):
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timesteps = torch.randint(trained, (len(latents),), generator=generator).to(latents.device)
        text = encode_attacked(pipeline, prompt, free * scale)
        loss = diffusion_loss(pipeline, latents, text, noise, timesteps)
        (free.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
        losses.append(float(loss.detach()))
    return (free * scale).detach(), losses
