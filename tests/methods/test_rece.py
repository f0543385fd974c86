"""RECE against loops per token and per layer, and against its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.closed_forms import IDENTITY, D, Tokens, layers, minimiser
from support.tolerances import CLOSED_FORMS, LANDED, MOVED, above, close
from torch import Tensor

from mace_pl.methods.rece import RECE
from mace_pl.methods.uce import UCE


def plain(tokens: Tokens, strength: float, rounds: int, ridge: float) -> dict[str, Tensor]:
    """Every layer on its own; each embedding that brings a token back by least squares over all layers."""
    original, erased = layers(), list(zip(tokens.targets, tokens.anchors, strict=True))

    def edited() -> dict[str, Tensor]:
        found = {}
        for name, W in original.items():
            pairs = [(strength, e, W @ anchor) for e, anchor in erased] + [(0.3, e, W @ e) for e in tokens.names]
            found[name] = minimiser(pairs + [(0.5, e, W @ e) for e in IDENTITY], len(W))
        return found

    weights = edited()
    for _ in range(rounds):
        rows = torch.cat([*weights.values(), ridge**0.5 * IDENTITY])
        for target, anchor in zip(tokens.targets, tokens.anchors, strict=True):
            wanted = torch.cat([*(W @ target for W in original.values()), torch.zeros(D, dtype=torch.float64)])
            erased.append((torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0], anchor))
        weights = edited()
    return weights


@pytest.mark.parametrize(("strength", "rounds", "ridge"), [(1.0, 1, 1e-3), (0.7, 3, 0.1)])
def test_it_equals_loops_per_token_and_layer(strength: float, rounds: int, ridge: float) -> None:
    tokens = Tokens()
    edit = RECE(strength, rounds, ridge).solve(tokens.sums(identity=0.5, domain=0.3))
    close(edit.weights(layers()), plain(tokens, strength, rounds, ridge), CLOSED_FORMS)


def test_an_anchor_that_is_the_target_changes_nothing() -> None:
    tokens = Tokens(anchors=Tokens().targets)  # nothing brings back better than the target itself, but for λ
    close(RECE(rounds=2, ridge=1e-12).solve(tokens.sums(identity=0.5)).R, IDENTITY, CLOSED_FORMS)


def test_targets_land_on_their_anchors_where_nothing_is_preserved() -> None:
    tokens = Tokens()
    T = RECE(rounds=2, ridge=1e3).solve(tokens.sums(identity=1e-11, domain=0)).R
    close(tokens.targets @ T.T, tokens.anchors, LANDED)


def test_what_brings_a_target_back_after_uce_brings_back_less_after_a_round() -> None:
    tokens = Tokens()
    sums, A = tokens.sums(identity=0.5), tokens.sums().metric
    T = UCE().solve(sums).R
    found = torch.linalg.solve(T.T @ A @ T + 0.1 * IDENTITY, T.T @ A) @ tokens.targets.T
    T_next = RECE(rounds=1, ridge=0.1).solve(sums).R

    def far(edit: Tensor) -> float:
        difference = edit @ found - tokens.targets.T
        return float((difference * (A @ difference)).sum())

    above(far(T_next) - far(T), MOVED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, r"strength=0\.0 must be above 0"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"ridge": float("nan")}, "ridge=nan must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"model.method.{message}"):
        RECE(**settings)  # type: ignore[arg-type]


def test_a_singular_system_is_refused() -> None:
    with pytest.raises(ValueError, match=r"singular.*Raise --model\.refine\.identity"):
        RECE().solve(Tokens().sums(identity=0, domain=0))


def test_a_ridge_that_is_lost_in_rounding_is_refused() -> None:
    narrow = {"a.to_k": layers()["a.to_k"]}  # 5 outputs see no more than 5 dimensions of the text
    with pytest.raises(ValueError, match=r"singular: model\.method\.ridge=1e-300 is lost.*Raise it"):
        RECE(ridge=1e-300).solve(replace(Tokens().sums(identity=0.5), layers=narrow))
