"""Frozen linear layers by oneDNN: on a CPU, the matrix products of torch are not always the fastest that it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b by oneDNN; the gradient of x alone, by oneDNN too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[..., I] to [..., O]; float32, W [O, I], b [O]."""
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[..., O] to [..., I]."""
        (weight,) = ctx.saved_tensors
        return _product(gradients[0], weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return product


def product_pays() -> bool:
    """Whether oneDNN's product is there and worth it: with AVX-512, of which the usual one leaves half on some CPUs.

    At the shapes of SD 1.4 on an AMD EPYC of the Zen 5 family, 255 to 450 GFLOP/s against 140 to 210, and a training
    step in 6.5 s against 7.6 (measured, two cores); without AVX-512 it was not measured.
    """
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _forward(layer: nn.Linear, usual: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The layer's own forward pass in mixed precision and in other dtypes."""
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return usual(x)
    product: Tensor = FrozenProduct.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return product


@contextmanager
def frozen_products(network: nn.Module) -> Iterator[None]:
    """Within the context the frozen float32 linear layers of a network on the CPU multiply by oneDNN, where it pays.

    The results are those of torch's product but for rounding. Layers with a parameter to train stay as they are.
    """
    layers = [m for m in network.modules() if type(m) is nn.Linear and _frozen(m)] if product_pays() else []
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _frozen(layer: nn.Linear) -> bool:
    parameters = list(layer.parameters())
    return all(p.device.type == "cpu" and p.dtype == torch.float32 and not p.requires_grad for p in parameters)
