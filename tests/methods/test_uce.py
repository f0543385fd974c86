"""UCE against loops per token and per layer written from its paper, against its limits, and on the toy model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tolerances import FLOAT32_EDIT, FLOAT64_SOLVES, FLOAT64_SUMS, LANDED, close
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.templates import TEMPLATES
from mace_pl.methods.base import ClosedForm, Sums
from mace_pl.methods.closed_form import Preservation, gram
from mace_pl.methods.mace import Mace, MaceRefinement
from mace_pl.methods.uce import UCE
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.stages.preserve import Preserving
from mace_pl.stages.refine import refine_concepts

D = 12


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("width", [5, 20])  # of a layer: T is the same for all
def test_it_equals_equation_7_token_by_token(strength: float, width: int) -> None:
    W, c, anchors, preserved = rand(width, D, seed=0), rand(3, D, seed=1), rand(3, D, seed=2), rand(7, D, seed=3)
    lam, b = 0.5, 1.7
    left, right = torch.zeros(width, D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    for target, anchor in zip(c, anchors, strict=True):
        left += strength * torch.outer(W @ anchor, target)
        right += strength * torch.outer(target, target)
    for e in preserved:
        left += b * torch.outer(W @ e, e)
        right += b * torch.outer(e, e)
    expected = (left + lam * W) @ torch.linalg.inv(right + lam * torch.eye(D, dtype=torch.float64))
    preservation = Preservation(lam, domain=gram(preserved, preserved), domain_weight=b)
    T = UCE(strength).solve(Sums(gram(c, c), gram(anchors, c), preservation, {"layer": W})).R
    close(W @ T, expected, FLOAT64_SOLVES)


def test_an_anchor_that_is_the_target_changes_nothing() -> None:
    c = rand(3, D, seed=1)
    T = UCE().solve(Sums(gram(c, c), gram(c, c), Preservation(0.5), {})).R
    assert torch.equal(T, torch.eye(D, dtype=torch.float64))


def test_targets_land_on_their_anchors_where_nothing_is_preserved() -> None:
    c, anchors = rand(3, D, seed=1), rand(3, D, seed=2)
    T = UCE().solve(Sums(gram(c, c), gram(anchors, c), Preservation(1e-9), {})).R
    close(c @ T.T, anchors, LANDED)


def test_a_strength_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.method\.strength=0\.0 must be above 0"):
        UCE(0.0)


@pytest.mark.parametrize(
    ("method", "pairs"),
    [(UCE(), 1), (MaceRefinement("all"), 77 * 30), (MaceRefinement(), None), (Mace(UCE()), 1)],
    ids=["last", "all", "coexisting", "MACE on UCE"],
)
def test_a_method_says_which_tokens_are_summed(toy_pipeline: Path, method: ClosedForm, pairs: int | None) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    backbone = backbone_of(pipeline)
    templates = list(TEMPLATES["object"])[:30]
    preservation = Preservation(identity=1.0)
    refined = refine_concepts(pipeline, [Concept("ship", "dog")], [templates], method, Preserving(preservation), True)
    sums = refined.sums["ship"]
    if pairs == 1:
        (encoded,) = backbone.encode(["ship"])[0].double()
        last = encoded[len(backbone.tokenizers[0]("ship").input_ids) - 2]
        close(sums.F, torch.outer(last, last), FLOAT64_SUMS)
    elif pairs is not None:
        whole = backbone.encode([t.replace("{}", "ship") for t in templates])[0]
        assert whole.shape[0] * whole.shape[1] == pairs
        close(sums.F, gram(whole, whole), FLOAT64_SUMS)
    else:  # fewer tokens than all of them, and more than one a prompt
        whole = backbone.encode([t.replace("{}", "ship") for t in templates])[0].double()
        assert sums.F.trace() < whole.square().sum()
        assert torch.linalg.matrix_rank(sums.F) > 1
    T = method.solve(Sums(sums.F, sums.G, preservation, refined.original)).R
    for name, W in refined.original.items():
        close(refined.weights()[name], (W.double() @ T).float(), FLOAT32_EDIT)
