"""The best embedding of a target against least squares per token, and at its limits."""

import pytest
import torch
from support.closed_forms import D, layers
from support.seeds import seeded
from support.tolerances import CLOSED_FORMS, EXPLAINED, FLOAT64_ROOTS, above, close

from mace_pl.methods.best_embedding import RIDGE, Seen


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seeded(11)))


def edited(T: torch.Tensor) -> Seen:
    return Seen.of((W, W @ T) for W in layers().values())


def test_size_and_residual_are_those_of_least_squares_per_token(tokens: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(seeded(12))
    pairs = [(W, W + 0.3 * torch.randn(W.shape, dtype=W.dtype, generator=generator)) for W in layers().values()]
    seen, size, left, whole = Seen.of(pairs), 0.0, 0.0, 0.0
    old, new = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    ridge = RIDGE * (new.T @ new).diagonal().mean()
    for e in tokens:
        rows = torch.cat([new, ridge.sqrt() * torch.eye(D, dtype=torch.float64)])
        wanted = torch.cat([old @ e, torch.zeros(D, dtype=torch.float64)])
        best = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
        size, whole = size + best.square().sum(), whole + (old @ e).square().sum()
        left = left + (new @ best - old @ e).square().sum()
    expected = (size / tokens.square().sum()).sqrt(), (left / whole).sqrt()
    close(torch.tensor(seen.reach(tokens.T @ tokens), dtype=torch.float64), torch.stack(expected), CLOSED_FORMS)
    close(seen.moved(tokens), ((new - old) @ tokens.T).norm(dim=0), CLOSED_FORMS)
    close(seen.lengths(tokens), (old @ tokens.T).norm(dim=0), CLOSED_FORMS)


def test_a_rotation_hides_nothing_and_a_projector_all(tokens: torch.Tensor) -> None:
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    e = tokens[0]
    seen = edited(rotation)
    A, ridge = seen.A, RIDGE * seen.N.diagonal().mean()
    _, residual = seen.reach(torch.outer(e, e))
    assert residual**2 < ridge * (e @ e) / (e @ A @ e)  # the rotated token is as large, so λ costs no more than that
    # onto what no layer confuses with e: nothing of the target is left to be seen
    without = torch.eye(D, dtype=torch.float64) - torch.outer(e, A @ e) / (e @ A @ e)
    size, residual = edited(without).reach(torch.outer(e, e))
    found, wanted = (torch.tensor(pair, dtype=torch.float64) for pair in ((size, residual), (0.0, 1.0)))
    close(found, wanted, FLOAT64_ROOTS)


def test_no_edit_moves_nothing(tokens: torch.Tensor) -> None:
    seen = edited(torch.eye(D, dtype=torch.float64))
    close(seen.moved(tokens), torch.zeros(3, dtype=torch.float64), FLOAT64_ROOTS)
    size, _ = seen.reach(tokens.T @ tokens)
    above(size, EXPLAINED)
