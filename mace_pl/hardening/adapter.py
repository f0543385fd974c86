"""The LoRA of a hardening on the network, by PEFT.

Legend: D input width of a layer, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods.edit import Factors
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import Backbone

ADAPTER = "hardening"


class Adapter:
    """The LoRA on a network, until :func:`attached` ends.

    Args:
        backbone: the network with PEFT's layers in place.
        names: of the layers that have a LoRA.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self.backbone, self.names = backbone, names

    def pair(self, name: str) -> tuple[Any, Any]:
        """The parameters A [R, D] and B [O, R] of a layer."""
        layer = self.backbone.network.get_submodule(name)
        return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight

    def parameters(self) -> list[Any]:
        """A and B of each layer, in order."""
        return [parameter for name in self.names for parameter in self.pair(name)]

    def factors(self) -> Factors:
        """Copies on the CPU, by layer name; the scale is one."""
        pairs = {name: self.pair(name) for name in self.names}
        return {name: (A.detach().cpu().clone(), B.detach().cpu().clone()) for name, (A, B) in pairs.items()}

    @contextmanager
    def off(self, weights: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the context the network has other weights, and no LoRA.

        Args:
            weights: of the layers that differ, by name.
            back: those that it has now.
        """
        self.backbone.network.disable_adapters()
        self.backbone.set_key_values(weights)
        try:
            yield
        finally:
            self.backbone.set_key_values(back)
            self.backbone.network.enable_adapters()


def check_rank(backbone: Backbone, names: Sequence[str], rank: int, setting: str = "harden.rank") -> None:
    """Refuse a rank above the smaller side of a layer.

    Raises:
        UserError: naming the layer.
    """
    sides = {name: min(weight.shape) for name, weight in backbone.weights_of(names).items()}
    smallest = min(sides, key=sides.__getitem__)
    if rank > sides[smallest]:
        raise UserError(
            f"{setting}={rank} must be at most {sides[smallest]}, the smaller side of {smallest}. Give a smaller one."
        )


@contextmanager
def attached(backbone: Backbone, names: Sequence[str], rank: int, seed: int) -> Iterator[Adapter]:
    """Within the context the layers have a LoRA: A from the seed (uniform, Kaiming as PEFT's), B zero, scale one.

    Args:
        backbone: the network, whose own parameters are frozen.
        names: of its layers.
        rank: R.
        seed: each layer draws from a stream of its own.

    Raises:
        UserError: a rank above the smaller side of a layer.
    """
    from peft import LoraConfig  # takes a second to import

    check_rank(backbone, names, rank)
    backbone.network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names)), ADAPTER)
    adapter = Adapter(backbone, names)
    try:
        for name in names:
            A, B = adapter.pair(name)
            uniform = torch.rand(A.shape, generator=stream(seed, "hardening", "lora", name))
            A.data.copy_((2 * uniform - 1) * A.shape[1] ** -0.5)
            B.data.zero_()
        yield adapter
    finally:
        backbone.network.unload_lora()
