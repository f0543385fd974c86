"""Frozen layers that save no inputs for the backward pass, on a CPU.

torch keeps the input of every convolution for the gradient of its weight, wanted or not, and in mixed precision a copy
of every weight in the lower precision. A frozen layer needs neither: its gradient is a product with its weight alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class FrozenLinear(torch.autograd.Function):
    """x Wᵀ + b, [..., I] to [..., O]; W [O, I] and b [O] are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Saves W alone, which is in memory anyway."""
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient g [..., O] to g W [..., I]."""
        (weight,) = ctx.saved_tensors
        return product(gradients[0], weight.to(gradients[0].dtype).t(), None).to(ctx.dtype), None, None


class FrozenConvolution(torch.autograd.Function):
    """A convolution [N, I, h, w] to [N, O, h', w'] by a constant weight and bias.

    ``geometry`` is its stride, padding, dilation and groups.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        """Saves the weight, which is in memory anyway, and the input's shape."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.geometry = x.shape, x.dtype, geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The transposed convolution."""
        (weight,) = ctx.saved_tensors
        gradient = gradients[0]
        given: Tensor = conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.geometry)
        return given.to(ctx.dtype), None, None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply: x Wᵀ + b, on a CPU by oneDNN where it pays."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not (plain and onednn_pays()):
        return F.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return result


def onednn_pays() -> bool:
    """Whether oneDNN's product is there and worth it: with AVX-512, of which the usual one leaves half on some CPUs.

    At the shapes of SD 1.4 on an AMD EPYC of the Zen 5 family, 255 to 450 GFLOP/s against 140 to 210, and a training
    step in 6.5 s against 7.6 (measured, two cores; 12.9 s of processor time on one core, 15.3 without it and 15.7 with
    torch's own layers); without AVX-512 it was not measured.
    """
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    result: Tensor = FrozenLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def _convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    result: Tensor = FrozenConvolution.apply(x, layer.weight, layer.bias, geometry)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def frozen_layers(network: nn.Module) -> Iterator[None]:
    """Within the context the frozen linear layers and convolutions of a network keep nothing for their weights.

    Results are those of torch but for rounding. Layers with a parameter to train stay as they are, and so do
    convolutions that pad with anything but zeros, and layers whose ``forward`` something else has replaced. On a GPU
    nothing changes: the gain was measured on CPUs alone (a step at the shapes of SD 1.4 in 6.3 s against 7.6, an image
    of the bundled model in 0.91 of the time, all of it by oneDNN: without, 1.03).
    """
    passing: list[nn.Module] = []
    for layer in network.modules():
        parameters = list(layer.parameters())
        if "forward" in vars(layer) or any(p.requires_grad or p.device.type != "cpu" for p in parameters):
            continue
        if type(layer) is nn.Linear:
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            layer.forward = partial(_convolution, layer)  # type: ignore[method-assign]
        else:
            continue
        passing.append(layer)
    try:
        yield
    finally:
        for layer in passing:
            del layer.forward
