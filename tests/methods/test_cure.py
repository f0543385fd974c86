"""CURE against loops per token and per layer, and against its limits."""

from __future__ import annotations

import pytest
import torch
from support.closed_forms import IDENTITY, D, Tokens, layers
from support.tolerances import CLOSED_FORMS, LANDED, close
from torch import Tensor

from mace_pl.methods.cure import CURE


def softened(tokens: Tensor, vector: Tensor, alpha: float) -> Tensor:
    """P e, direction by direction, from the singular values of the tokens themselves."""
    _, s, Vt = torch.linalg.svd(tokens, full_matrices=False)
    found = torch.zeros(D, dtype=torch.float64)
    for sigma, direction in zip(s, Vt, strict=True):
        share = float(sigma**2 / (s**2).sum())
        found += alpha * share / ((alpha - 1) * share + 1) * (direction @ vector) * direction
    return found


@pytest.mark.parametrize("alpha", [1.0, 2.0, 5.0])
def test_it_equals_loops_per_direction_and_layer(alpha: float) -> None:
    tokens = Tokens()
    expected = {}
    for name, W in layers().items():
        columns = []
        for e in IDENTITY:
            both = softened(tokens.targets, softened(tokens.names, e, alpha), alpha)
            columns.append(W @ (e - (softened(tokens.targets, e, alpha) - both)))
        expected[name] = torch.stack(columns, dim=1)
    close(CURE(alpha).solve(tokens.sums(domain=0.3)).weights(layers()), expected, CLOSED_FORMS)


def test_a_hard_projector_removes_targets_and_leaves_what_is_retained() -> None:
    tokens = Tokens()
    T = CURE(alpha=1e12).solve(tokens.sums()).R
    close(tokens.names @ T.T, tokens.names, LANDED)
    alone = CURE(alpha=1e12).solve(tokens.sums(domain=0)).R
    close(tokens.targets @ alone.T, torch.zeros_like(tokens.targets), LANDED)


def test_targets_that_are_retained_do_not_move_at_a_hard_projector() -> None:
    tokens = Tokens(names=Tokens().targets)
    close(tokens.targets @ CURE(alpha=1e12).solve(tokens.sums()).R.T, tokens.targets, LANDED)


@pytest.mark.parametrize("alpha", [0.5, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"model\.method\.alpha=.* must be at least 1 \(published: 2 to 5\)"):
        CURE(alpha)
