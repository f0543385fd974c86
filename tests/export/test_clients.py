"""All keys of the LoRA that a run writes are applied by other programs, at the shapes of SD 1.x, 2.x and SDXL."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from support.clients import CLIENTS, applied

from mace_pl.export.lora import PEFT_PREFIX, to_kohya
from mace_pl.methods.lora import to_peft
from mace_pl.models.cross_attention import key_value_names

#: configurations of the real UNets, as far as they differ from diffusers' defaults, and their cross-attentions
REAL: dict[str, tuple[dict[str, Any], int]] = {
    "sd1": ({"cross_attention_dim": 768}, 16),
    "sd2": (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        16,
    ),
    "sdxl": (
        {
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        70,
    ),
}


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> Any:
    """Family, real UNet without memory, and the factors of a LoRA of rank 1."""
    settings, attentions = REAL[request.param]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    shapes = {name: unet.get_submodule(name).weight.shape for name in key_value_names(unet)}
    assert len(shapes) == 2 * attentions
    return request.param, unet, {n: (torch.zeros(1, s[1]), torch.zeros(s[0], 1)) for n, s in shapes.items()}


@pytest.mark.parametrize("client", CLIENTS)
def test_every_key_is_applied_to_its_layer(real: Any, client: str) -> None:
    name, unet, factors = real
    tensors = to_kohya(factors, unet, sdxl=name == "sdxl")
    found = applied(tensors, CLIENTS[client](list(factors), name == "sdxl"))
    assert len(found) == len(tensors) == 3 * len(factors)
    for layer, (A, B) in factors.items():
        own = {key.partition(".")[2]: tensors[key] for key, place in found.items() if place == layer}
        assert set(own) == {"lora_down.weight", "lora_up.weight", "alpha"}
        assert own["lora_down.weight"].shape == A.shape and own["lora_up.weight"].shape == B.shape
        assert own["alpha"] == 1


def test_every_key_is_applied_by_diffusers(real: Any) -> None:
    name, unet, factors = real
    tensors = to_kohya(factors, unet, sdxl=name == "sdxl")
    reader = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    found, alphas = reader.lora_state_dict(tensors, unet_config=unet.config)
    keys = convert_unet_state_dict_to_peft({key.removeprefix("unet."): tensor for key, tensor in found.items()})
    assert set(keys) == {f"{layer}.lora_{x}.weight" for layer in factors for x in "AB"}
    assert len(alphas) == len(factors) and set(alphas.values()) == {1.0}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_other_namings_are_for_their_libraries_alone(real: Any, client: str) -> None:
    name, _, factors = real
    find = CLIENTS[client](list(factors), name == "sdxl")
    assert not applied(to_peft(factors), find) and not applied(to_peft(factors, PEFT_PREFIX), find)
