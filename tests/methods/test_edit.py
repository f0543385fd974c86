"""Stage 3 on top of any closed form: for values alone, and for one that differs from layer to layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.closed_forms import IDENTITY, Tokens, layers, minimiser, outer, rand
from support.tolerances import CLOSED_FORMS, FLOAT32_EDIT, FLOAT64_SUMS, close
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.methods import OCE, RECE, SPEED, ClosedForm, Mace, MaceRefinement, NullSpace
from mace_pl.methods.closed_form import Preservation
from mace_pl.methods.edit import ConceptSums, Edit
from mace_pl.methods.fusion import added, fusion

FORMS = [MaceRefinement("all"), RECE(), NullSpace(), SPEED("shared"), SPEED("layers"), OCE()]


def loras() -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """A [1, D] and B [O, 1] of two targets for every layer."""
    sizes = {name: len(W) for name, W in layers().items()}
    return {
        target: {n: (rand(1, 12, seed=50 + i), rand(o, 1, seed=60 + i)) for n, o in sizes.items()}
        for i, target in enumerate(("ship", "dog"))
    }


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_fusion_equals_loops_on_the_refined_weights_of_each_layer(form: ClosedForm) -> None:
    tokens, own = Tokens(), {"ship": rand(15, 12, seed=70), "dog": rand(15, 12, seed=71)}
    refined = Mace(form).solve(tokens.sums(identity=0.5))
    zero = torch.zeros(12, 12, dtype=torch.float64)
    sums = {target: ConceptSums(zero, zero, outer(e)) for target, e in own.items()}
    preservation = Preservation(0.7, domain=outer(tokens.names), domain_weight=2.0)
    edit = fusion(refined, sums, loras(), preservation)
    expected = {}
    for name, W in layers().items():
        first = refined.weights(layers())[name]
        pairs = [(2.0, e, W @ e) for e in tokens.names] + [(0.7, e, first @ e) for e in IDENTITY]
        for target, prompts in own.items():
            A, B = loras()[target][name]
            pairs += [(1.0, e, (first + B @ A) @ e) for e in prompts]
        expected[name] = minimiser(pairs, len(W))
    close(edit.weights(layers()), expected, CLOSED_FORMS)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_loras_are_added_to_the_refined_weights(form: ClosedForm) -> None:
    refined = form.solve(Tokens().sums(identity=0.5))
    found = added(refined, list(loras().values())).weights(layers())
    for name, W in refined.weights(layers()).items():
        close(found[name], W + sum(B @ A for A, B in (own[name] for own in loras().values())), FLOAT64_SUMS)


def test_loras_that_are_not_finite_are_no_edit() -> None:
    refined, broken = Edit(torch.eye(12, dtype=torch.float64)), loras()
    for A, _ in broken["dog"].values():
        A[0, 0] = float("nan")
    own = outer(rand(15, 12, seed=70))
    sums = {target: ConceptSums(own, own, own) for target in broken}
    with pytest.raises(
        UserError, match=r"the edit is not finite, nothing is written: fusion of the LoRAs of ship, dog"
    ):
        fusion(refined, sums, broken, Preservation(0.7))
    with pytest.raises(UserError, match=r"the edit is not finite, nothing is written: the added LoRAs.*model\.lr"):
        added(refined, list(broken.values()))


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_an_edit_comes_back_from_its_file(form: ClosedForm, tmp_path: Path) -> None:
    edit = form.solve(Tokens().sums(identity=0.5))
    edit.save(tmp_path / "edit.safetensors", {})
    found = Edit.load(tmp_path / "edit.safetensors").weights(layers())
    single = {name: W.float() for name, W in edit.weights(layers()).items()}
    close({name: W.float() for name, W in found.items()}, single, FLOAT32_EDIT)


def test_a_refinement_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.method\.refinement=Mace trains LoRAs itself"):
        Mace(Mace())
