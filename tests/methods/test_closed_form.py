"""The closed forms against plain per-token, per-layer loops written from the equations."""

import pytest
import torch
from support.seeds import seeded
from support.tolerances import FLOAT64_SOLVES, FLOAT64_STIFF, close
from torch import Tensor

from mace_pl.methods.closed_form import Preservation, apply_edit, fuse, gram, refine

D = 12


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seeded(seed)))


def outer(tokens: Tensor) -> Tensor:
    total = torch.zeros(D, D, dtype=torch.float64)
    for e in tokens:
        total += torch.outer(e, e)
    return total


def minimiser(pairs: list[tuple[float, Tensor, Tensor]], width: int) -> Tensor:
    """argmin over X of Σ weight·‖X e − y‖², from its normal equations, token by token."""
    left = torch.zeros(width, D, dtype=torch.float64)
    right = torch.zeros(D, D, dtype=torch.float64)
    for weight, e, y in pairs:
        left += weight * torch.outer(y, e)
        right += weight * torch.outer(e, e)
    return left @ torch.linalg.inv(right)


@pytest.mark.parametrize("identity", [0.0, 0.7])
@pytest.mark.parametrize("prior_weight", [0.0, 0.3])
@pytest.mark.parametrize("domain_weight", [0.0, 2.0])
@pytest.mark.parametrize("width", [5, 20])
def test_both_stages_equal_plain_loops(identity: float, prior_weight: float, domain_weight: float, width: int) -> None:
    W, f, g = rand(width, D, seed=1), rand(30, D, seed=2), rand(30, D, seed=3)
    p, d = rand(40, D, seed=4), rand(25, D, seed=5)
    preservation = Preservation(identity, outer(p), prior_weight, outer(d), domain_weight)
    basis = torch.eye(D, dtype=torch.float64)

    pairs = [(1.0, a, W @ b) for a, b in zip(f, g, strict=True)]
    pairs += [(prior_weight, e, W @ e) for e in p] + [(domain_weight, e, W @ e) for e in d]
    refined = minimiser(pairs + [(identity, e, W @ e) for e in basis], width)
    T = refine(gram(f, f), gram(g, f), preservation)
    close(W @ T, refined, FLOAT64_SOLVES)

    own = {"a": rand(15, D, seed=6), "b": rand(15, D, seed=7)}
    loras = {name: (rand(1, D, seed=8 + i), rand(width, 1, seed=18 + i)) for i, name in enumerate(own)}
    pairs = [(1.0, e, (refined + loras[n][1] @ loras[n][0]) @ e) for n, tokens in own.items() for e in tokens]
    pairs += [(prior_weight, e, W @ e) for e in p] + [(domain_weight, e, W @ e) for e in d]
    expected = minimiser(pairs + [(identity, e, refined @ e) for e in basis], width)
    fused = fuse(T, torch.stack([gram(e, e) for e in own.values()]).sum(0), preservation)
    A = torch.cat([fused.fused(loras[n][0], gram(own[n], own[n])) for n in own])
    B = torch.cat([loras[n][1] for n in own], dim=1)
    close(apply_edit(W, fused.R, A, B), expected, FLOAT64_SOLVES)


def test_a_large_identity_term_returns_the_original() -> None:
    f, g = rand(30, D, seed=2), rand(30, D, seed=3)
    T = refine(gram(f, f), gram(g, f), Preservation(identity=1e14))
    close(T, torch.eye(D, dtype=torch.float64), FLOAT64_STIFF)


def test_anchor_equal_to_target_returns_the_original() -> None:
    f = rand(30, D, seed=2)
    T = refine(gram(f, f), gram(f, f), Preservation())
    assert torch.equal(T, torch.eye(D, dtype=torch.float64))


def test_a_singular_system_names_the_terms() -> None:
    f = rand(3, D, seed=2)
    with pytest.raises(ValueError, match=r"singular.*zero: identity.*prior, domain.*Raise --model.refine.identity"):
        refine(gram(f, f), gram(rand(3, D, seed=3), f), Preservation())
