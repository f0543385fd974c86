"""Batched LoRAs: those of several concepts at once on the cross-attention keys and values.

Legend: N samples, T tokens, D text width, O output width, R rank, C concepts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mace_pl.errors import UserError
from mace_pl.models.cross_attention import key_value_names


def stream(seed: int, *names: object) -> torch.Generator:
    """A random stream of its own for (seed, names): the same on every device, in any order, at any batch size."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class SideBySideLoRA(nn.Module):
    """A frozen projection with one LoRA per concept; each sample of the batch passes through its own.

    y_n = W x_n + B_{c(n)} A_{c(n)} x_n, with c(n) = ``active[n]``; without ``active`` the projection alone. A is drawn
    from the concept's own stream (uniform, Kaiming as PEFT's) or given, B is zero; the scale is one.

    Args:
        base: the projection, O × D, without bias.
        concepts: how many concepts.
        rank: R.
    """

    def __init__(self, base: nn.Linear, concepts: int, rank: int) -> None:
        super().__init__()
        self.base = base
        self.A = nn.ParameterList([nn.Parameter(torch.zeros(rank, base.in_features)) for _ in range(concepts)])
        self.B = nn.ParameterList([nn.Parameter(torch.zeros(base.out_features, rank)) for _ in range(concepts)])
        self.active: list[int] | None = None

    def forward(self, x_NTD: Tensor) -> Tensor:
        """[N, T, D] to [N, T, O]."""
        out: Tensor = self.base(x_NTD)
        if self.active is None:
            return out
        A_NRD = torch.stack([self.A[c] for c in self.active]).to(x_NTD.dtype)
        B_NOR = torch.stack([self.B[c] for c in self.active]).to(x_NTD.dtype)
        return out + (x_NTD @ A_NRD.transpose(1, 2)) @ B_NOR.transpose(1, 2)


class ConceptLoRAs(nn.Module):
    """The batched LoRAs of a UNet, put in place of its ``attn2`` keys and values.

    Args:
        unet: the UNet, changed in place until :meth:`remove`.
        targets: the concepts' names.
        rank: R.
        seed: the run's seed; each concept draws from its own stream.
        down: A [R, D] of each concept, the same in all layers, and not trained; drawn and trained when None.
    """

    def __init__(
        self, unet: nn.Module, targets: list[str], rank: int, seed: int, down: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"model.rank={rank} must be at least 1 (the paper uses 1).")
        self.targets = targets
        self.names = key_value_names(unet)
        layers = []
        for name in self.names:
            layer = SideBySideLoRA(cast(nn.Linear, unet.get_submodule(name)), len(targets), rank)
            device = layer.base.weight.device
            for i, target in enumerate(targets):
                layer.B[i].data = layer.B[i].data.to(device)
                if down is not None:
                    layer.A[i] = nn.Parameter(down[i].to(device, torch.float32, copy=True), requires_grad=False)
                    continue
                bound = layer.base.in_features**-0.5
                draw = torch.rand(rank, layer.base.in_features, generator=stream(seed, target, "lora", name))
                layer.A[i].data = ((2 * draw - 1) * bound).to(device)
            unet.set_submodule(name, layer)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def activate(self, concepts: list[int] | None) -> None:
        """Let sample n pass through the LoRA of ``concepts[n]``; None switches them off."""
        for layer in self.layers:
            layer.active = concepts  # type: ignore[assignment]

    def tensors_of(self, concept: int) -> list[nn.Parameter]:
        """A and B of one concept by layer, also what is not trained of them."""
        return [p for layer in self.layers for p in (layer.A[concept], layer.B[concept])]  # type: ignore[index,misc]

    def parameters_of(self, concept: int) -> list[nn.Parameter]:
        """What is trained of one concept: clipped on its own, stepped on its own."""
        return [p for p in self.tensors_of(concept) if p.requires_grad]

    def parameters_list(self) -> list[nn.Parameter]:
        """What is trained of all concepts, without the frozen projections."""
        return [p for c in range(len(self.targets)) for p in self.parameters_of(c)]

    def factors(self, concept: int) -> dict[str, tuple[Tensor, Tensor]]:
        """(A [R, D], B [O, R]) by layer name."""
        pairs = zip(self.names, self.layers, strict=True)
        return {n: (x.A[concept].detach(), x.B[concept].detach()) for n, x in pairs}  # type: ignore[index]

    def put(self, unet: nn.Module) -> None:
        """Put the LoRAs in place again, after :meth:`remove`."""
        for name, layer in zip(self.names, self.layers, strict=True):
            unet.set_submodule(name, layer)

    def remove(self, unet: nn.Module) -> None:
        """Put the plain projections back."""
        for name, layer in zip(self.names, self.layers, strict=True):
            unet.set_submodule(name, layer.get_submodule("base"))


def to_peft(factors: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "unet.") -> dict[str, Tensor]:
    """PEFT's names as diffusers' ``load_lora_weights`` reads them: ``unet.<layer>.lora_A.weight`` and ``lora_B``."""
    tensors = {}
    for name, (A, B) in factors.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = A
        tensors[f"{prefix}{name}.lora_B.weight"] = B
    return tensors


def from_peft(tensors: Mapping[str, Tensor], prefix: str = "unet.") -> dict[str, tuple[Tensor, Tensor]]:
    """The inverse of :func:`to_peft`."""
    end = ".lora_A.weight"
    names = [key[len(prefix) : -len(end)] for key in tensors if key.endswith(end)]
    return {n: (tensors[f"{prefix}{n}{end}"], tensors[f"{prefix}{n}.lora_B.weight"]) for n in names}
