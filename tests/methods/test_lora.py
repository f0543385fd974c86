"""LoRAs start as PEFT's do, and change names with PEFT's layers in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from support.seeds import seeded
from support.tolerances import DECILES, close
from torch import Tensor

from mace_pl.methods.lora import ConceptLoRAs, from_peft, to_peft
from mace_pl.models.cross_attention import key_value_names

RANK = 64  # as many values as a test of their distribution wants


@pytest.fixture
def unet(toy_pipeline: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(toy_pipeline, subfolder="unet")


def with_adapter(unet: UNet2DConditionModel, rank: int) -> UNet2DConditionModel:
    """PEFT's own layers beside the keys and values of cross-attention."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=key_value_names(unet)))
    return unet


def test_factors_start_as_those_of_peft(unet: UNet2DConditionModel, toy_pipeline: Path) -> None:
    """A has PEFT's shapes and distribution, uniform up to one over the root of the width; B is zero."""
    ours = ConceptLoRAs(unet, ["ship"], RANK, seed=seeded(1)).factors(0)
    other = UNet2DConditionModel.from_pretrained(toy_pipeline, subfolder="unet")
    theirs = from_peft(get_peft_model_state_dict(with_adapter(other, RANK)), "")
    assert ours.keys() == theirs.keys()
    scaled: list[Tensor] = []
    for side in (ours, theirs):
        assert {name: (A.shape, B.shape) for name, (A, B) in side.items()} == {
            name: (A.shape, B.shape) for name, (A, B) in ours.items()
        }
        assert not any(B.any() for _, B in side.values())
        scaled.append(torch.cat([A.flatten() * A.shape[1] ** 0.5 for A, _ in side.values()]))
        assert 0.99 < scaled[-1].abs().max() <= 1 + 1e-6  # some of 16,384 values come near the bound, none beyond
    deciles = torch.arange(1, 10) / 10
    close(*(values.quantile(deciles) for values in scaled), DECILES)


def test_no_two_layers_or_concepts_start_alike(unet: UNet2DConditionModel) -> None:
    loras = ConceptLoRAs(unet, ["ship", "dog"], 1, seed=1)
    starts = {tuple(A.flatten().tolist()) for concept in (0, 1) for A, _ in loras.factors(concept).values()}
    assert len(starts) == 2 * len(loras.names)


def test_peft_takes_the_names_and_gives_them_back(unet: UNet2DConditionModel) -> None:
    generator = torch.Generator().manual_seed(seeded(2))
    factors = {}
    for name in key_value_names(unet):
        out, width = unet.get_submodule(name).weight.shape
        factors[name] = (torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator))
    taken = set_peft_model_state_dict(with_adapter(unet, 2), to_peft(factors, ""))
    assert not taken.unexpected_keys
    own = dict(unet.named_parameters())
    for name, pair in factors.items():
        for letter, value in zip("AB", pair, strict=True):
            assert torch.equal(own[f"{name}.lora_{letter}.default.weight"], value)
    back = from_peft(get_peft_model_state_dict(unet), "")
    beside = from_peft({"R": torch.eye(2), **to_peft(factors)})  # as an edit's file has it, with diffusers' prefix
    for found in (back, beside):
        assert found.keys() == factors.keys()
        assert all(torch.equal(x, y) for n, pair in factors.items() for x, y in zip(found[n], pair, strict=True))
