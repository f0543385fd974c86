"""SPEED (Li et al., ICLR 2026, arXiv 2503.07392): an edit in the null space of the names that it would harm."""

from __future__ import annotations

from typing import Literal

import torch

from mace_pl.errors import UserError
from mace_pl.methods.base import ClosedForm, Sums, above_zero
from mace_pl.methods.closed_form import metric, plain_edit
from mace_pl.methods.edit import Edit
from mace_pl.methods.retained import centres, in_null_space, retained_span
from mace_pl.models.cross_attention import is_value


class SPEED(ClosedForm):
    """T = I + (G − F) N Q M with M = (F N + I)⁻¹ and Q = I − M C (Cᵀ N M C)⁻¹ Cᵀ N; F, G and R are means.

    N projects on the eigenvectors of R with eigenvalues below a threshold; R is the mean over names that the plain edit
    (G − F)(F + I)⁻¹ moves more than the average, and noisy copies of them. C, the start token and centres of the empty
    prompt's other tokens, is preserved exactly. Only values are edited. Names come from ``model.domain_names``; the
    weights of ``model.refine`` are not used. The published filter ‖W_l (T_e − I) e_r‖ and noise where W_l is smallest
    look at each layer: ``form: layers``. ``form: shared`` is ours: ‖(T_e − I) e_r‖, noise where A = Σ W_lᵀ W_l over the
    values is smallest, one T. Number and size of the copies, and start and seed of k-means and noise are ours.

    Args:
        form: ``shared`` or ``layers``.
        threshold: of eigenvalues of R (published: 0.1).
        tokens: ``last`` of the bare name, or ``bare``, all of its tokens (published for nudity).
        centres: of the empty prompt (published: 3).
        copies: noisy copies of a name.
    """

    source = "SPEED (Li et al., ICLR 2026)"
    reads_names, weighs = True, False

    def __init__(
        self,
        form: Literal["shared", "layers"] = "shared",
        threshold: float = 0.1,
        tokens: Literal["last", "bare"] = "last",
        centres: int = 3,
        copies: int = 10,
    ) -> None:
        if min(centres, copies) < 0:
            raise UserError(f"model.method.centres={centres} and copies={copies} must be at least 0.")
        self.form, self.tokens, self.centres, self.copies = form, tokens, centres, copies
        self.threshold = above_zero("threshold", threshold, "0.1")

    @property
    def one_matrix(self) -> bool:
        """Of the shared form."""
        return self.form == "shared"

    def solve(self, sums: Sums) -> Edit:
        """T of the values, or factors of the values of each layer.

        Raises:
            UserError: the names leave no direction to edit.
        """
        F, G, one = sums.F / sums.pairs, sums.G / sums.pairs, torch.eye(len(sums.F), dtype=torch.float64)
        assert sums.blank is not None
        C = torch.cat([sums.blank[:1], centres(sums.blank[1:], self.centres)]).double().T
        retained = (sums.names, plain_edit(F, G) - one, self.copies, self.threshold)
        if self.form == "shared":
            values = [W for name, W in sums.layers.items() if is_value(name)]
            A = metric(values or sums.layers.values())  # the layer of pooled embeddings is no value
            U = retained_span(*retained, size_DD=one, noise_DD=A)
            return Edit(one + in_null_space(G - F, F, U, C), values_only=True)
        left, s, right = torch.linalg.svd(G - F)
        rank, factors = int((s > 1e-12 * s[0]).sum()), {}  # below is rounding
        for name, W in sums.layers.items():
            if is_value(name):
                A = metric([W])
                U = retained_span(*retained, size_DD=A, noise_DD=A)
                rows = in_null_space(s[:rank, None] * right[:rank], F, U, C)
                factors[name] = (rows, W.cpu().double() @ left[:, :rank])
        return Edit(one, factors, values_only=True)
