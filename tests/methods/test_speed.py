"""SPEED's two forms against loops per token and per layer, and what they promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from support.closed_forms import IDENTITY, D, Tokens, layers, outer, rand
from support.tolerances import CLOSED_FORMS, MOVED, above, close
from torch import Tensor

from mace_pl.methods.retained import centres
from mace_pl.methods.speed import SPEED

FORMS: tuple[Literal["shared", "layers"], ...] = ("shared", "layers")


def plain_change(tokens: Tokens) -> Tensor:
    """(G − F)(F + I)⁻¹ from means, token by token."""
    F, difference = outer(tokens.targets) / 3, torch.zeros(D, D, dtype=torch.float64)
    for e, g in zip(tokens.targets, tokens.anchors, strict=True):
        difference += torch.outer(g - e, e) / 3
    return difference @ torch.linalg.inv(F + IDENTITY)


def retained(tokens: Tokens, W: Tensor | None, copies: int) -> Tensor:
    """The mean of e eᵀ over the names that move most and their noisy copies; as one layer sees them, or as all do."""
    change = plain_change(tokens)
    moved = [float(((IDENTITY if W is None else W) @ change @ e).norm()) for e in tokens.names]
    own = [e for e, by in zip(tokens.names, moved, strict=True) if by >= sum(moved) / len(moved)]
    assert 0 < len(own) < len(tokens.names)
    values = [one for name, one in layers().items() if name.endswith("to_v")]
    size = sum((one.T @ one for one in values), torch.zeros(D, D).double()) if W is None else W.T @ W
    direction = torch.linalg.eigh(size)[1][:, 0]
    noise = torch.randn(copies, len(own), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    copied = [e + noise[i, k, 0] * direction for i in range(copies) for k, e in enumerate(own)]
    return outer(torch.stack([*own, *copied])) / (len(own) * (1 + copies))


def plain(tokens: Tokens, form: str, threshold: float, copies: int) -> dict[str, Tensor]:
    """Each value W + X with the least Σ ‖(W + X) e_f − W e_g‖² / n + ‖X‖² where X leaves C and the retained names."""
    C = torch.cat([tokens.blank[:1], centres(tokens.blank[1:], 3)])
    found = layers()
    for name, W in layers().items():
        if name.endswith("to_k"):
            continue
        values, vectors = torch.linalg.eigh(retained(tokens, None if form == "shared" else W, copies))
        fixed = torch.cat([vectors[:, values >= threshold].T, C])
        free = torch.linalg.svd(fixed)[2][torch.linalg.matrix_rank(fixed) :]  # [k, D], X = Y free
        left, right = torch.zeros(len(W), len(free), dtype=torch.float64), torch.eye(len(free), dtype=torch.float64)
        for e, g in zip(tokens.targets, tokens.anchors, strict=True):
            left += torch.outer(W @ (g - e), free @ e) / 3
            right += torch.outer(free @ e, free @ e) / 3
        found[name] = W + left @ torch.linalg.inv(right) @ free
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("threshold", "copies"), [(0.1, 0), (0.5, 4)])
def test_it_equals_loops_per_token_and_layer(form: Literal["shared", "layers"], threshold: float, copies: int) -> None:
    tokens = Tokens()
    edit = SPEED(form, threshold, copies=copies).solve(tokens.sums(identity=1e3))
    close(edit.weights(layers()), plain(tokens, form, threshold, copies), CLOSED_FORMS)
    above((edit.weights(layers())["b.to_v"] - layers()["b.to_v"]).abs().max(), MOVED)


def test_the_forms_differ_by_what_they_retain_alone() -> None:
    tokens = Tokens()
    shared, own = (SPEED(form).solve(tokens.sums()).weights(layers()) for form in FORMS)
    above(max(float((shared[name] - own[name]).abs().max()) for name in shared), MOVED)
    without = replace(tokens.sums(), names=None)
    close(
        SPEED("shared").solve(without).weights(layers()), SPEED("layers").solve(without).weights(layers()), CLOSED_FORMS
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_empty_prompt_and_the_retained_names_stay(form: Literal["shared", "layers"]) -> None:
    tokens = Tokens(names=rand(1, D, seed=3))  # one name moves as much as the average
    weights = SPEED(form, threshold=1e-9, copies=0).solve(tokens.sums()).weights(layers())
    stays = torch.cat([tokens.blank[:1], centres(tokens.blank[1:], 3), tokens.names])
    for name, W in layers().items():
        close(stays @ weights[name].T, stays @ W.T, CLOSED_FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_an_anchor_that_is_the_target_changes_nothing(form: Literal["shared", "layers"]) -> None:
    tokens = Tokens(anchors=Tokens().targets)
    assert all(torch.equal(W, layers()[name]) for name, W in SPEED(form).solve(tokens.sums()).weights(layers()).items())


def test_an_empty_prompt_within_what_is_retained_needs_no_place_of_its_own() -> None:
    tokens = Tokens(names=rand(1, D, seed=3), blank=rand(1, D, seed=3).expand(9, D))
    T = SPEED(threshold=1e-9, copies=0).solve(tokens.sums()).R
    close(T @ tokens.names.T, tokens.names.T, CLOSED_FORMS)


def test_nothing_left_to_edit_is_refused() -> None:
    many = Tokens(names=rand(60, D, seed=3))
    with pytest.raises(ValueError, match=r"model\.method\.threshold=1e-09: no direction is left to edit\. Raise it"):
        SPEED(threshold=1e-9).solve(many.sums())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": 0.0}, r"threshold=0\.0 must be above 0"), ({"copies": -1}, "copies=-1 must be at least 0")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPEED(**settings)  # type: ignore[arg-type]
