"""LoRAs whose down-projection is fixed to directions of the prompts and of what is preserved: B alone is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import CONCEPTS, train
from support.tolerances import FLOAT64_SOLVES, RUN_FACTORS, RUN_MOVED, above, close
from torch import Tensor

from mace_pl.concepts.preservation import StageWeights
from mace_pl.errors import UserError
from mace_pl.methods import Mace
from mace_pl.methods.closed_form import Preservation
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.stages.down import fixed_down
from mace_pl.stages.preserve import Preserving, inputs_of

NAMES = [concept["target"] for concept in CONCEPTS]
RANK = 2
THINGS = {"things": ["dog", "ship"]}


def fitted(pipeline: Path, images: Path, at_once: int = 3, **method: Any) -> ConceptErasure:
    weights = {"fuse": StageWeights(identity=1.0, domain=0.5), "domain_names": ["cat", "bird", "house", "person"]}
    data = {"concepts_per_batch": at_once}
    return train(pipeline, images, data=data, rank=RANK, method=Mace(down="gram", **method), **weights)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def together(toy_pipeline: Path, images: Path) -> ConceptErasure:
    """Three concepts at once."""
    return fitted(toy_pipeline, images)


def downs(module: ConceptErasure) -> dict[str, Tensor]:
    """A of each target, the same in every layer."""
    assert module.trained is not None
    found = {}
    for name, factors in module.trained.factors.items():
        first, *others = [A for A, _ in factors.values()]
        assert all(torch.equal(A, first) for A in others)
        found[name] = first
    return found


def preserved_matrix(module: ConceptErasure) -> Tensor:
    """S of stage 3, from the names' sums."""
    assert module.refined is not None
    domain = module.refined.preserved.fuse.domain
    assert domain is not None
    return 0.5 * domain + torch.eye(len(domain), dtype=torch.float64)


def test_directions_are_those_of_the_targets_prompts(together: ConceptErasure) -> None:
    """F_i v = λ S v for the sums of the run, with the largest λ there is."""
    S = preserved_matrix(together)
    for name, A in zip(NAMES, fixed_down(together.refined, NAMES, together.method, RANK), strict=True):
        F = together.refined.sums[name].F_all
        values = torch.linalg.eigvals(torch.linalg.inv(S) @ F).real.sort(descending=True).values[:RANK]
        unit = A / (A @ S * A).sum(1, keepdim=True).sqrt()
        close((unit @ F * unit).sum(1) / values[0], values / values[0], FLOAT64_SOLVES)
        close(unit @ F / values[0], values[:, None] * (unit @ S) / values[0], FLOAT64_SOLVES)


def test_only_up_projections_are_trained(together: ConceptErasure) -> None:
    fixed = fixed_down(together.refined, NAMES, together.method, RANK)
    for A, own in zip(downs(together).values(), fixed, strict=True):
        assert torch.equal(A, own.float())
    (group,) = together.configure_optimizers().param_groups
    up = [layer.B[c] for c in range(3) for layer in together.loras.layers]
    assert [id(p) for p in group["params"]] == [id(p) for p in up]
    for factors in together.trained.factors.values():
        above(max(B.abs().max() for _, B in factors.values()), RUN_MOVED)


def test_concepts_learn_the_same_side_by_side_and_alone(
    together: ConceptErasure, toy_pipeline: Path, images: Path
) -> None:
    alone = fitted(toy_pipeline, images, at_once=1)
    for name, factors in together.trained.factors.items():
        for layer, (A, B) in factors.items():
            assert torch.equal(alone.trained.factors[name][layer][0], A)
            close(alone.trained.factors[name][layer][1], B, RUN_FACTORS)


def test_a_group_shares_one_down_projection(together: ConceptErasure, toy_pipeline: Path, images: Path) -> None:
    """It is that of the sum of the group's prompts; who is in no group has its own."""
    grouped = fitted(toy_pipeline, images, groups=THINGS)
    found = downs(grouped)
    assert torch.equal(found["ship"], found["dog"])
    assert torch.equal(found["painter"], downs(together)["painter"])
    F, S = grouped.refined.sums["ship"].F_all + grouped.refined.sums["dog"].F_all, preserved_matrix(grouped)
    (A, _, _) = fixed_down(grouped.refined, NAMES, grouped.method, 1)
    value = (A @ F @ A.T) / (A @ S @ A.T)
    close((A @ F) / (A @ F).norm(), value * (A @ S) / (A @ F).norm(), FLOAT64_SOLVES)
    assert not torch.equal(
        grouped.trained.factors["ship"][grouped.loras.names[0]][1],
        grouped.trained.factors["dog"][grouped.loras.names[0]][1],
    )


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        ({}, 33, r"model\.rank=33 must be at most 32 with model\.method\.down=gram"),
        ({"groups": {"g": ["ship", "cat"]}}, 1, r"groups: 'cat' is no target\. Choose from ship, painter, dog"),
        ({"groups": {"g": ["ship"], "h": ["ship", "dog"]}}, 1, "groups: 'ship' is there twice"),
    ],
)
def test_what_no_fixed_projection_is_made_from_is_refused_before_images(
    toy_pipeline: Path, tmp_path: Path, method: dict[str, Any], rank: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(toy_pipeline, tmp_path / "images", rank=rank, method=Mace(down="gram", **method))
    assert not (tmp_path / "images").exists()


def test_groups_of_trained_projections_and_unknown_ways_are_refused() -> None:
    with pytest.raises(UserError, match="groups has no effect with down=trained"):
        Mace(groups=THINGS)
    with pytest.raises(UserError, match="down='grams' is unknown. Choose from trained, gram"):
        Mace(down="grams")  # type: ignore[arg-type]


@pytest.mark.parametrize(("down", "same"), [("trained", True), ("gram", False)])
def test_weights_of_the_fusion_are_told_where_directions_depend_on_them(down: Any, same: bool) -> None:
    """What a killed run has saved is not resumed with other directions."""
    wanted, method = Preserving(Preservation()), Mace(down=down)
    stages = [(StageWeights(), StageWeights(identity=weight)) for weight in (1.0, 2.0)]
    first, second = (inputs_of({}, both, wanted, method) for both in stages)
    assert (first == second) == same
