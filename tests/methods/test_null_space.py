"""The null-space edit against loops per token and per layer, and what it promises."""

from __future__ import annotations

import pytest
import torch
from support.closed_forms import IDENTITY, Tokens, layers, outer, rand
from support.tolerances import CLOSED_FORMS, close
from torch import Tensor

from mace_pl.methods.null_space import NullSpace


def leading(names: Tensor, share: float) -> Tensor:
    """The eigenvectors of Σ e eᵀ, largest first, one after another until they make up the share."""
    values, vectors = torch.linalg.eigh(outer(names))
    found: list[Tensor] = []
    reached = 0.0
    for i in reversed(range(len(values))):
        if reached >= share * float(values.sum()) or values[i] < 1e-10 * values[-1]:
            break
        found.append(vectors[:, i])
        reached += float(values[i])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("safe", [False, True])
def test_it_equals_the_smallest_change_of_each_layer_that_maps_targets_and_keeps_the_span(
    share: float, safe: bool
) -> None:
    tokens = Tokens()
    V = leading(tokens.names, share)
    free = torch.linalg.qr(V, mode="complete")[0][:, V.shape[1] :]  # of directions that may change
    expected = {}
    for name, W in layers().items():
        asked = []
        for target, anchor in zip(tokens.targets, tokens.anchors, strict=True):
            goal = V @ (V.T @ anchor) if safe else anchor
            asked.append(W @ goal - W @ target)
        # ΔW = Y freeᵀ of least norm with ΔW e_f = W (e_g − e_f) for each target
        Y = torch.stack(asked, dim=1) @ torch.linalg.pinv(free.T @ tokens.targets.T)
        expected[name] = W + Y @ free.T
    edit = NullSpace(share, safe).solve(tokens.sums())
    close(edit.weights(layers()), expected, CLOSED_FORMS)


def test_targets_land_and_the_preserved_span_stays() -> None:
    tokens = Tokens()
    T = NullSpace(share=1.0).solve(tokens.sums()).R
    close(tokens.targets @ T.T, tokens.anchors, CLOSED_FORMS)
    close(tokens.names @ T.T, tokens.names, CLOSED_FORMS)
    mixed = rand(4, len(tokens.names), seed=9) @ tokens.names
    close(mixed @ T.T, mixed, CLOSED_FORMS)


def test_anchors_are_projected_on_the_preserved_span() -> None:
    tokens = Tokens()
    T = NullSpace(share=1.0, safe_anchors=True).solve(tokens.sums()).R
    basis = torch.linalg.qr(tokens.names.T)[0]
    close(tokens.targets @ T.T, tokens.anchors @ basis @ basis.T, CLOSED_FORMS)


def test_an_anchor_that_is_the_target_changes_nothing() -> None:
    assert torch.equal(NullSpace().solve(Tokens(anchors=Tokens().targets).sums()).R, IDENTITY)


def test_nothing_retained_is_no_constraint() -> None:
    tokens = Tokens()
    T = NullSpace().solve(tokens.sums(domain=0)).R
    close(tokens.targets @ T.T, tokens.anchors, CLOSED_FORMS)


def test_a_target_in_the_preserved_span_is_refused() -> None:
    tokens = Tokens()
    inside = Tokens(targets=torch.cat([tokens.targets[:2], tokens.names[:1]]))
    with pytest.raises(ValueError, match=r"singular: outside of the 7 directions .* span 2 dimensions of 3\. Lower"):
        NullSpace(share=1.0).solve(inside.sums())


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"model\.method\.share=.* must be above 0 and at most 1"):
        NullSpace(share)
