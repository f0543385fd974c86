"""OCE against loops per token and per layer, and what it promises."""

from __future__ import annotations

import pytest
import torch
from support.closed_forms import IDENTITY, Tokens, layers
from support.tolerances import CLOSED_FORMS, MOVED, above, close
from torch import Tensor

from mace_pl.methods.oce import OCE


def projector(columns: Tensor) -> Tensor:
    basis = torch.linalg.qr(columns)[0]
    return basis @ basis.T


def plain(tokens: Tokens, strength: float, identity: float, domain: float) -> dict[str, Tensor]:
    """Every layer by a singular value decomposition of its whole M."""
    found = {}
    for name, W in layers().items():
        if name.endswith("to_k"):
            found[name] = W
            continue
        R = projector(torch.stack([W @ e for e in tokens.targets], dim=1))
        R_star = projector(torch.stack([W @ e for e in tokens.anchors], dim=1))
        M = -strength * R @ (torch.eye(len(W), dtype=torch.float64) - R_star)
        for e in tokens.names:
            M += domain * torch.outer(W @ e, W @ e)
        for e in IDENTITY:
            M += identity * torch.outer(W @ e, W @ e)
        U, s, Vt = torch.linalg.svd(M)
        rank = min(W.shape)  # a layer wider than the text does not use the rest of its outputs
        found[name] = U[:, :rank] @ Vt[:rank] @ W
    return found


@pytest.mark.parametrize(("strength", "identity", "domain"), [(800.0, 10.0, 2.0), (3.0, 0.5, 0.0)])
def test_it_equals_loops_per_token_and_layer(strength: float, identity: float, domain: float) -> None:
    tokens = Tokens()
    edit = OCE(strength).solve(tokens.sums(identity, domain))
    close(edit.weights(layers()), plain(tokens, strength, identity, domain), CLOSED_FORMS)


def test_every_value_keeps_its_size() -> None:
    tokens, original = Tokens(), layers()
    for name, W in OCE().solve(tokens.sums(10.0, 2.0)).weights(original).items():
        close(W.T @ W, original[name].T @ original[name], CLOSED_FORMS)
        changed = (W - original[name]).abs().max()
        above(changed, MOVED) if name.endswith("to_v") else close(changed, 0.0, CLOSED_FORMS)


def test_an_anchor_that_is_the_target_changes_nothing() -> None:
    tokens = Tokens(anchors=Tokens().targets)
    close(OCE().solve(tokens.sums(10.0, 2.0)).weights(layers()), layers(), CLOSED_FORMS)


def test_a_singular_system_is_refused() -> None:
    with pytest.raises(ValueError, match=r"singular \(zero: identity.*Raise --model\.refine\.identity"):
        OCE().solve(Tokens().sums(identity=0.0, domain=0.0))


def test_a_strength_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.method\.strength=-1 must be above 0 \(published: 800\)"):
        OCE(-1)
