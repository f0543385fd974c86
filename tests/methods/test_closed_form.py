"""The closed forms against plain per-token, per-layer loops written from the equations."""

import pytest
import torch
from support.seeds import seeded
from support.tolerances import BY_HAND, FLOAT64_SOLVES, FLOAT64_STIFF, FLOAT64_SUMS, close
from torch import Tensor

from mace_pl.methods.closed_form import (
    Preservation,
    absolute,
    apply_edit,
    both_forms,
    down_projection,
    fuse,
    gram,
    leading_directions,
    metric,
    moved_by,
    refine,
)

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


@pytest.mark.parametrize("rank", [1, 5, D])
def test_directions_solve_the_generalised_eigenproblem(rank: int) -> None:
    """F v = λ S v, the largest λ of S⁻¹F first, vᵀ S v = 1, and no sign that a library chooses."""
    e, p = rand(30, D, seed=2), rand(40, D, seed=4)
    F, S = outer(e), outer(p) + 0.5 * torch.eye(D, dtype=torch.float64)
    values, v = leading_directions(F, torch.linalg.cholesky(S), rank)
    assert v.shape == (rank, D)
    close(v @ F, values[:, None] * (v @ S), FLOAT64_SOLVES)
    close(v @ S @ v.T, torch.eye(rank, dtype=torch.float64), FLOAT64_SOLVES)
    expected = torch.linalg.eigvals(torch.linalg.inv(S) @ F).real.sort(descending=True).values
    close(values, expected[:rank], FLOAT64_SOLVES)
    assert (v.max(1).values == v.abs().max(1).values).all()


def test_a_fixed_down_projection_reads_as_much_as_a_trained_one_starts_with() -> None:
    """The rows read equally much of S; the first reads of F what rows of a uniform start read in the mean."""
    e, p = rand(30, D, seed=2), rand(40, D, seed=4)
    F, S = outer(e), outer(p)
    A = down_projection(F, torch.linalg.cholesky(S), 4)
    of_preserved = A @ S @ A.T
    close(of_preserved, of_preserved[0, 0] * torch.eye(4, dtype=torch.float64), FLOAT64_SOLVES)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 1000 - 1  # of entries up to 1/√D, every one as often
    variance = (grid / D**0.5).square().mean()
    close(A[0] @ F @ A[0], variance * F.trace(), BY_HAND)


def test_the_fusion_leaves_the_directions_of_a_single_concept() -> None:
    """With M = F + S, A F M⁻¹ is A with each row times λ / (1 + λ)."""
    e, p = rand(30, D, seed=2), rand(40, D, seed=4)
    F, preservation = outer(e), Preservation(0.7, outer(p), 0.3)
    S = preservation.statistics(D) + 0.7 * torch.eye(D, dtype=torch.float64)
    values, _ = leading_directions(F, torch.linalg.cholesky(S), 3)
    A = down_projection(F, torch.linalg.cholesky(S), 3)
    fused = fuse(torch.eye(D, dtype=torch.float64), F, preservation)
    close(fused.fused(A, F), (values / (1 + values))[:, None] * A, FLOAT64_SOLVES)


def test_the_metric_is_the_sum_over_layers_whatever_the_width() -> None:
    for width in (3, 300, 530):  # less than a block, and more than one or two
        layers = [rand(rows, width, seed=rows) for rows in (5, 20)]
        expected = torch.zeros(width, width, dtype=torch.float64)
        for W in layers:
            for row in W:
                expected += torch.outer(row, row)
        found = metric(layers)
        close(found, expected, FLOAT64_SUMS)
        assert torch.equal(found, found.T)


def test_how_far_another_matrix_moves_keys_and_values() -> None:
    """Token by token and layer by layer; nothing is moved by the same matrix."""
    tokens, layers = rand(30, D), [rand(8, D, seed=1), rand(20, D, seed=2)]
    before, after = rand(D, D, seed=3), rand(D, D, seed=4)
    moved = sum(float((W @ (after - before) @ e).square().sum()) for W in layers for e in tokens)
    size = sum(float((W @ before @ e).square().sum()) for W in layers for e in tokens)
    F, A = gram(tokens, tokens), metric(layers)
    close(moved_by(before, after, F, A), (moved / size) ** 0.5, FLOAT64_SOLVES)
    assert moved_by(before, before, F, A) == 0


def test_relative_weights_do_not_depend_on_how_many_tokens_were_summed() -> None:
    generator = torch.Generator().manual_seed(seeded(11))
    e_f, e_g, e_p, e_d = torch.randn(4, 20, 6, generator=generator).double()
    F, G, P, D = e_f.T @ e_f, e_g.T @ e_f, e_p.T @ e_p, e_d.T @ e_d
    own = Preservation(0.1, P, 0.2, D, 0.3, absolute=False)
    expected = refine(F, G, absolute(own, F, 1))
    for targets, captions, names in ((100.0, 1.0, 1.0), (1.0, 1e4, 0.5), (7.0, 0.01, 30.0)):
        more = Preservation(0.1, captions * P, 0.2, names * D, 0.3, absolute=False)
        close(refine(targets * F, targets * G, absolute(more, targets * F, 1)), expected, FLOAT64_SOLVES)


def test_absolute_weights_stay_to_the_bit_and_both_forms_are_said() -> None:
    generator = torch.Generator().manual_seed(seeded(12))
    e_f, e_p = torch.randn(2, 20, 6, generator=generator).double()
    F, P = e_f.T @ e_f, e_p.T @ e_p
    published = Preservation(1e3, P, 1e-4)
    assert absolute(published, F, 100) is published
    by_hand = {"identity": 1e3 * 6 / float(F.trace()), "prior": 1e-4 * float(P.trace() / F.trace())}
    assert both_forms(published, F) == (
        f"identity 1000 (relative {by_hand['identity']:.4g}), prior 0.0001 (relative {by_hand['prior']:.4g})"
    )
    again = absolute(Preservation(by_hand["identity"], P, by_hand["prior"], absolute=False), F, 100)
    close([again.identity, again.prior_weight], [1e3, 1e-4], BY_HAND)


@pytest.mark.parametrize("sort", [True, False], ids=["absolute", "relative"])
def test_the_weight_of_the_domain_alone_grows_with_the_number_of_targets(sort: bool) -> None:
    generator = torch.Generator().manual_seed(seeded(13))
    e_f, e_p, e_d = torch.randn(3, 20, 6, generator=generator).double()
    F, terms = e_f.T @ e_f, (1.0, e_p.T @ e_p, 0.003, e_d.T @ e_d, 0.3, sort)
    one, forty = (absolute(Preservation(*terms, growth=0.75), F, targets) for targets in (1, 40))
    assert one == absolute(Preservation(*terms), F, 40)  # of one target, and without a growth
    assert (forty.identity, forty.prior_weight) == (one.identity, one.prior_weight)
    close(forty.domain_weight, one.domain_weight * 40**0.75, BY_HAND)
