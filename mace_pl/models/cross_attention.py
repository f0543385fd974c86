"""Find cross-attention keys and values by qualified name, and look at attention probabilities while they are formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mace_pl.errors import UserError


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """The UNet's ``attn2`` modules by qualified name, in the order of the module tree.

    Raises:
        UserError: the UNet has none.
    """
    layers = {name: module for name, module in unet.named_modules() if name.split(".")[-1] == "attn2"}
    if not layers:
        raise UserError("model.pretrained: its UNet has no cross-attention (attn2) layer, so there is nothing to edit.")
    return layers


def key_value_names(unet: nn.Module) -> list[str]:
    """Qualified names of every ``attn2`` key and value projection, such as ``….attn2.to_k``."""
    return [f"{name}.{part}" for name in cross_attentions(unet) for part in ("to_k", "to_v")]


def is_value(name: str) -> bool:
    """Whether a name of :func:`key_value_names` is a value's."""
    return name.endswith(".to_v")


def key_values(unet: nn.Module) -> dict[str, Tensor]:
    """Copies of the ``attn2`` keys and values W [O, D] by layer name."""
    return {name: unet.get_submodule(name).weight.detach().clone() for name in key_value_names(unet)}  # type: ignore[operator]


class LastCrossAttention(Exception):  # noqa: N818 - a signal, not an error
    """Raised once the last ``attn2`` has been seen: nothing after it is needed.

    With whole passes a step takes 1.14 of the time and 1.43 of the memory on the bundled model, whose last block has no
    cross-attention, as SDXL's; at the shapes of SD 1.4 1.02 and 1.07 (measured, one CPU core).
    """


class ObservedAttention:
    """An attention processor that shows its probabilities [N, H, Q, T], in float32, to ``observe``.

    Every switch of the layer counts, as in the processors of diffusers: its own ``get_attention_scores`` upcasts where
    the model asks for it, encoder states are normalised, residuals added.

    Args:
        name: the layer's qualified name.
        observe: called with (name, probabilities).
    """

    def __init__(self, name: str, observe: Callable[[str, Tensor], None]) -> None:
        self.name = name
        self.observe = observe

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """[N, Q, C] to [N, Q, C]; the result is what the fused kernel gives."""
        residual, (n, q, _) = hidden_states, hidden_states.shape
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], n)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        probabilities = attn.get_attention_scores(query, key, mask)  # [N·H, Q, T]
        # may end the forward pass: values come after it
        self.observe(self.name, probabilities.float().view(n, attn.heads, q, context.shape[1]))
        value = attn.head_to_batch_dim(attn.to_v(context))
        out = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ value)))
        result: Tensor = (out + residual if attn.residual_connection else out) / attn.rescale_output_factor
        return result


@contextmanager
def observed(unet: UNet2DConditionModel, observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the context every ``attn2`` shows its probabilities; other layers keep their processors."""
    before = {name: module.processor for name, module in cross_attentions(unet).items()}
    for name, module in cross_attentions(unet).items():
        module.set_processor(ObservedAttention(name, observe))
    try:
        yield
    finally:
        for name, module in cross_attentions(unet).items():
            module.set_processor(before[name])


@contextmanager
def checkpointed(
    unet: UNet2DConditionModel, layer_loss: Callable[[Tensor], Tensor], last: Callable[[], bool]
) -> Iterator[None]:
    """Within the context blocks keep only what they are given; the backward pass runs each of them again.

    Args:
        unet: the UNet2DConditionModel.
        layer_loss: what is formed from a layer's probabilities, in the second run too.
        last: whether only the last ``attn2`` is left. Its block is not kept for a second run: its backward pass comes
            first, and the forward pass ends inside it.
    """

    def form_again(name: str, probabilities: Tensor) -> None:
        layer_loss(probabilities)

    def runs() -> tuple[Any, Any]:
        return nullcontext(), observed(unet, form_again)

    def block(module: nn.Module, *args: Any) -> Any:
        return module(*args) if last() else checkpoint(module, *args, use_reentrant=False, context_fn=runs)

    unet.enable_gradient_checkpointing(block)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def attention_losses(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    layer_loss: Callable[[Tensor], Tensor],
    extra: Mapping[str, Any] | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Σ over ``attn2`` layers of ``layer_loss(probabilities)``, [N]; the UNet stops at its last ``attn2``.

    Each layer's probabilities are reduced at once, so no list of maps is kept.

    Args:
        unet: the UNet2DConditionModel.
        latents: noisy latents [N, C, h, w].
        timesteps: [N].
        text: embeddings [N, T, D].
        layer_loss: probabilities [N, H, Q, T] to [N].
        extra: what else the UNet wants by name, as :func:`mace_pl.models.unet_inputs.unet_conditions` makes it.
        checkpointing: keep only what the blocks hand to each other and run each again during the backward pass.
    """
    left = len(cross_attentions(unet))
    total = torch.zeros(len(latents), device=latents.device)

    def observe(name: str, probabilities: Tensor) -> None:
        nonlocal left, total
        total = total + layer_loss(probabilities)
        left -= 1
        if left == 0:
            raise LastCrossAttention

    saving = checkpointed(unet, layer_loss, lambda: left == 1) if checkpointing else nullcontext()
    with saving, observed(unet, observe), suppress(LastCrossAttention):
        unet(latents, timesteps, encoder_hidden_states=text, **(extra or {}))
    return total


def compiled_parts(unet: nn.Module) -> list[nn.Module]:
    """The residual blocks, self-attentions and feed-forwards: what ``torch.compile`` takes.

    Cross-attentions stay as they are, since the forward pass ends inside the last of them.
    """
    parts = (ResnetBlock2D, FeedForward)
    return [m for name, m in unet.named_modules() if isinstance(m, parts) or name.split(".")[-1] == "attn1"]


@contextmanager
def compiled(unet: nn.Module) -> Iterator[None]:
    """Within the context the :func:`compiled_parts` of the UNet run compiled."""
    parts = compiled_parts(unet)
    # diffusers' compile_repeated_blocks() gives the same gradients too, a step in 0.92 of the time and its first one in
    # 0.72 (bundled model, one CPU core), but has no way back: the report's images would come of compiled blocks,
    # which fails in the products of oneDNN (frozen_layers.py). Blocks of one class share one cache, with an entry for
    # each of their shapes; torch.compile's own recompile_limit is younger than the oldest torch that is supported.
    with torch._dynamo.config.patch(recompile_limit=max(64, len(parts))):
        for part in parts:
            part.forward = torch.compile(part.forward)
        try:
            yield
        finally:
            for part in parts:
                del part.forward
