"""The closed form on pooled embeddings against loops per prompt; who has no pooled text; what is preserved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import family
from support.tolerances import CLOSED_FORMS, FLOAT32_EDIT, close
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.concepts.named import TEMPLATES
from mace_pl.concepts.preservation import StageWeights
from mace_pl.files.artifacts import write_tensors
from mace_pl.methods.base import ClosedForm
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.cure import CURE
from mace_pl.methods.mace import Mace, MaceRefinement
from mace_pl.methods.null_space import NullSpace
from mace_pl.methods.oce import OCE
from mace_pl.methods.rece import RECE
from mace_pl.methods.speed import SPEED
from mace_pl.methods.uce import UCE
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pooled_text import POOLED
from mace_pl.models.text_encoding import encoder_fingerprint
from mace_pl.stages.preserve import Preserving, preserving
from mace_pl.stages.refine import Refined, refine_concepts

PROMPTS = ["a photo of a {}", "a drawing of a {}", "a {} in the street"]
CONCEPTS = [Concept("ship", "ground"), Concept("painter", "art")]
NAMES = ["dog", "cat"]
IDENTITY, PRIOR, DOMAIN = 3.0, 0.7, 0.4


@pytest.fixture(scope="module")
def sdxl(toy_pipeline: Path) -> Any:
    """With encoders in float64, so that batches do not matter."""
    pipeline = family("sdxl", toy_pipeline)
    pipeline.text_encoder.double(), pipeline.text_encoder_2.double()
    return pipeline


@pytest.fixture(scope="module")
def prior() -> Tensor:
    rows = torch.randn(9, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rows.T @ rows


def refined(pipeline: Any, method: ClosedForm, pooled: Preservation | None) -> Refined:
    preservation = Preservation(IDENTITY, domain_weight=DOMAIN)
    concepts = CONCEPTS if method.anchored else [Concept(c.target, "") for c in CONCEPTS]
    wanted = Preserving(preservation, preservation, NAMES, pooled=pooled)
    return refine_concepts(pipeline, concepts, [PROMPTS] * 2, method, wanted, True)


def pooled_of(pipeline: Any, prompt: str) -> Tensor:
    return backbone_of(pipeline).encode([prompt])[1][0]


@pytest.mark.parametrize("method", [MaceRefinement(), Mace(), UCE(1.0)], ids=lambda m: type(m).__name__)
def test_it_equals_a_loop_over_prompts(sdxl: Any, prior: Tensor, method: ClosedForm) -> None:
    bare = isinstance(method, UCE)
    found = refined(sdxl, method, Preservation(IDENTITY, prior, PRIOR, domain_weight=DOMAIN))
    W = backbone_of(sdxl).pooled_layer()[POOLED].double()
    text, sizes = W[:, :40], W[:, 40:]
    left, right = PRIOR * text @ prior, PRIOR * prior
    count = 0
    for concept in CONCEPTS:
        for template in ["{}"] if bare else PROMPTS:
            f, g = (pooled_of(sdxl, template.replace("{}", word)) for word in (concept.target, concept.anchor))
            left, right, count = left + torch.outer(text @ g, f), right + torch.outer(f, f), count + 1
    for name in NAMES:
        for template in ("{}",) if bare else TEMPLATES:
            e = pooled_of(sdxl, template.replace("{}", name))
            left, right = left + DOMAIN * torch.outer(text @ e, e), right + DOMAIN * torch.outer(e, e)
    tokens = sum(float(found.sums[concept.target].pairs) for concept in CONCEPTS)
    identity = IDENTITY * count / tokens * torch.eye(40, dtype=torch.float64)
    expected = (left + text @ identity) @ torch.linalg.inv(right + identity)
    assert found.edit.pooled is not None
    close(text @ found.edit.pooled, expected, CLOSED_FORMS)
    weight = found.weights()[POOLED]
    close(weight, torch.cat([expected, sizes], dim=1).float(), FLOAT32_EDIT)
    assert torch.equal(weight[:, 40:], W[:, 40:].float())  # of image sizes


@pytest.mark.parametrize("method", [RECE(), SPEED(), NullSpace(), CURE(), Mace(UCE())], ids=repr)
def test_every_method_of_one_matrix_edits_it(sdxl: Any, method: ClosedForm) -> None:
    found = refined(sdxl, method, Preservation(IDENTITY, domain_weight=DOMAIN))
    assert found.edit.pooled is not None
    moved = [float((found.edit.pooled @ e - e).norm() / e.norm()) for e in pooled_of_names(sdxl, ["ship", "dog"])]
    assert moved[0] > moved[1]  # the target, and a name that is preserved


def pooled_of_names(pipeline: Any, names: list[str]) -> list[Tensor]:
    return [pooled_of(pipeline, name) for name in names]


@pytest.mark.parametrize("method", [OCE(), SPEED(form="layers"), Mace(SPEED(form="layers"))], ids=repr)
def test_a_method_without_one_matrix_leaves_it(sdxl: Any, method: ClosedForm) -> None:
    weights = [StageWeights(IDENTITY, domain=DOMAIN)] * 2
    assert preserving({}, weights, method, backbone_of(sdxl), "").pooled is None


def test_off_gives_the_same_keys_and_values_and_no_more(sdxl: Any) -> None:
    on, off = (refined(sdxl, MaceRefinement(), preservation) for preservation in (Preservation(IDENTITY), None))
    assert off.edit.pooled is None and off.sums["ship"].tensors.keys() == {"F", "G", "F_all", "pairs"}
    assert on.weights().keys() - off.weights().keys() == {POOLED}
    assert all(torch.equal(on.weights()[name], weight) for name, weight in off.weights().items())
    weights = [StageWeights(IDENTITY)] * 2
    settings = (weights, MaceRefinement(), backbone_of(sdxl), "")
    assert preserving({"pooled": False}, *settings).pooled is None
    assert preserving({}, *settings).pooled is not None


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_models_without_pooled_text_do_not_change(toy_pipeline: Path, name: str) -> None:
    pipeline = family(name, toy_pipeline)
    weights = [StageWeights(IDENTITY)] * 2
    assert preserving({}, weights, MaceRefinement(), backbone_of(pipeline), "").pooled is None
    asked, not_asked = (
        refined(pipeline, MaceRefinement(), preservation) for preservation in (Preservation(IDENTITY), None)
    )
    assert asked.edit.pooled is None and asked.original.keys() == not_asked.original.keys()
    assert all(torch.equal(asked.weights()[n], weight) for n, weight in not_asked.weights().items())


def test_a_prior_without_pooled_sums_is_named(sdxl: Any, prior: Tensor, tmp_path: Path) -> None:
    fingerprint = encoder_fingerprint(sdxl)
    made = {"encoder": fingerprint, "tokens": 77}
    gram = torch.eye(80, dtype=torch.float64)
    for name, tensors in (("old", {"gram": gram}), ("new", {"gram": gram, "pooled": prior})):
        write_tensors(tmp_path / f"{name}.safetensors", tensors, "statistics", made)
    old, new = (str(tmp_path / f"{name}.safetensors") for name in ("old", "new"))
    weights = [StageWeights(0.0, prior=PRIOR)] * 2

    def told(given: Any) -> Preserving:
        return preserving({"prior": given}, weights, MaceRefinement(), backbone_of(sdxl), fingerprint)

    both = told({new: 2.0}).pooled
    assert both is not None and both.prior is not None
    close(both.prior, 2 * prior, CLOSED_FORMS)
    with pytest.warns(UserWarning, match=r"old\.safetensors: no sums of pooled embeddings.*--model\.pooled false"):
        wanted = told(old)
    with pytest.raises(ValueError, match=r"the pooled text of SDXL: refine: the system is singular"):
        refine_concepts(sdxl, CONCEPTS, [PROMPTS] * 2, MaceRefinement(), wanted, True)
    write_tensors(tmp_path / "new.safetensors", {"gram": gram, "pooled": prior[:9, :9]}, "statistics", made)
    with pytest.raises(ValueError, match=r"pooled sums of width 9, expected 40"):
        told(new)
