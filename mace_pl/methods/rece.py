"""RECE, reliable and efficient concept erasure (Gong et al., ECCV 2024, arXiv 2407.12383)."""

from __future__ import annotations

import torch

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, Tokens, above_zero
from mace_pl.methods.closed_form import refine
from mace_pl.methods.edit import Edit


class RECE(ClosedForm):
    """UCE in rounds: each round also erases the embeddings that bring the targets back best.

    After T = (a F + S)-solve of UCE, the embedding c' that the edited layers see most like a target's token c is the
    minimiser of Σ_l ‖W_l T c' − W_l c‖² + λ‖c'‖². Its gradient is zero at c' = B c with B = (Tᵀ A T + λ I)⁻¹ Tᵀ A and
    A = Σ_l W_lᵀ W_l, one matrix for all tokens. So B F Bᵀ joins F and G Bᵀ joins G, and T is solved again, here always
    from the original weights with the sums of all rounds. S is UCE's: ``model.refine.identity`` (UCE: 0.5) and
    ``model.refine.domain`` (UCE: 1). All tokens of the bare name are summed, position by position; keys and values are
    edited.

    Args:
        strength: a, the weight of the targets (UCE: 1).
        rounds: how often (published: 3 for nudity, 1 for styles).
        ridge: λ (published: 0.1 for nudity, 1e-3 for styles).
    """

    source = "RECE (Gong et al., ECCV 2024)"
    tokens: Tokens = "bare"
    takes_strength = False  # c' has to reach the anchor, which a mean of target and anchor is not

    def __init__(self, strength: float = 1.0, rounds: int = 3, ridge: float = 0.1) -> None:
        if rounds < 1:
            raise UserError(f"model.method.rounds={rounds} must be at least 1. Without rounds it is model.method UCE.")
        self.strength, self.rounds = above_zero("strength", strength, "1 for UCE"), rounds
        self.ridge = above_zero("ridge", ridge, "0.1 and 1e-3")

    def solve(self, sums: Sums) -> Edit:
        """T after the last round.

        Raises:
            UserError: a system is singular.
        """
        A, identity = sums.metric, torch.eye(len(sums.F), dtype=torch.float64)
        own, anchors = self.strength * sums.F, self.strength * sums.G
        F, G = own, anchors
        T = refine(F, G, sums.preservation)
        for _ in range(self.rounds):
            TA = T.T @ A
            factor, failed = torch.linalg.cholesky_ex(TA @ T + self.ridge * identity)
            if failed:
                raise UserError(
                    f"refine: the system is singular: model.method.ridge={self.ridge} is lost beside the size of the "
                    f"layers. Raise it (published: 0.1 and 1e-3)."
                )
            B = torch.cholesky_solve(TA, factor)
            F, G = F + B @ own @ B.T, G + anchors @ B.T
            T = refine(F, G, sums.preservation)
        return Edit(T)
