"""Stage 3 over concepts: what their strengths and the refinement do not change is solved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from mace_pl.methods.closed_form import Fusion, Preservation, fuse
from mace_pl.methods.edit import ConceptSums, Edit, Factors, summed

LESS = "Train with a smaller --model.lr, or raise --model.fuse.identity."

FULL: Mapping[str, float] = MappingProxyType({})  # strengths where every target is erased fully


@dataclass(frozen=True)
class FusedLoras:
    """The LoRAs of a set of concepts, fused: M and A*_i depend on the set, not on strengths and T.

    Attributes:
        fusion: M, and Σ F_i + λ_I I.
        loras: by target, then by layer: (A*_i [r, D] in float64, B_i [O, r]).
    """

    fusion: Fusion
    loras: Mapping[str, Factors]

    @staticmethod
    def of(
        sums: Mapping[str, ConceptSums],
        loras: Mapping[str, Factors],
        preservation: Preservation,
        total: ConceptSums | None = None,
    ) -> FusedLoras:
        """Fuse, one concept at a time.

        Args:
            sums: by target, of which F_i counts.
            loras: by target, then by layer, (A [r, D], B [O, r]).
            preservation: what is preserved.
            total: the sums over all targets, where they are known.

        Raises:
            UserError: M is singular.
        """
        whole = summed(sums.values()) if total is None else total
        fusion = fuse(torch.eye(len(whole.F_all), dtype=torch.float64), whole.F_all, preservation)
        fused: dict[str, Factors] = {}
        for target, own in sums.items():
            A = {name: pair[0].cpu() for name, pair in loras[target].items()}
            rows = fusion.fused(torch.cat(list(A.values())), own.F_all).split([len(a) for a in A.values()])
            fused[target] = {name: (row, loras[target][name][1]) for name, row in zip(A, rows, strict=True)}
        return FusedLoras(fusion, fused)

    def edit(self, refined: Edit, strengths: Mapping[str, float] = FULL) -> Edit:
        """The whole edit W R + Σ w_i B_i A*_i.

        Args:
            refined: what stage 1 made; whatever it has per layer, B_0 A_0, is fused to B_0 A_0 (Σ F_i + λ_I I) M⁻¹.
            strengths: w by target; 1 where a target is not named.

        Raises:
            UserError: it is not finite.
        """
        fused, factors = self.fusion.again(refined.R), {}
        for name in next(iter(self.loras.values())):
            pairs = {target: own[name] for target, own in self.loras.items()}
            A = [A_i for A_i, _ in pairs.values()]
            B = [(strengths.get(target, 1.0) * B_i).double().cpu() for target, (_, B_i) in pairs.items()]
            if name in refined.factors:
                A_0, B_0 = refined.factors[name]
                A, B = [*A, fused.fused(A_0, fused.own)], [*B, B_0.double()]
            factors[name] = (torch.cat(A), torch.cat(B, dim=1))
        edit = replace(refined, R=fused.R, factors=factors)
        edit.check_finite(f"fusion of the LoRAs of {', '.join(self.loras)}. {LESS}")
        return edit


def fusion(
    refined: Edit, sums: Mapping[str, ConceptSums], loras: Mapping[str, Factors], preservation: Preservation
) -> Edit:
    """Stage 3 over all concepts: :meth:`FusedLoras.of` and :meth:`FusedLoras.edit`."""
    return FusedLoras.of(sums, loras, preservation).edit(refined)


def added(refined: Edit, loras: Sequence[Factors]) -> Edit:
    """The LoRAs simply on top of the refined weights: Σ_i B_i A_i by layer, as one LoRA of all ranks."""
    parts = [refined.factors, *loras]
    factors = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        A, B = (torch.cat([pair[i].double().cpu() for pair in own], dim=i) for i in (0, 1))
        factors[name] = (A, B)
    edit = replace(refined, factors=factors)
    edit.check_finite(f"the added LoRAs. {LESS}")
    return edit
