"""Only what the loss needs is computed: the forward pass ends in the last cross-attention, maps are reduced at once."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from support.seeds import seeded
from support.tolerances import BY_HAND, FLOAT32_GRADIENTS, close
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mace_pl.methods.lora import ConceptLoRAs
from mace_pl.methods.losses import masked_attention_norm
from mace_pl.models.cross_attention import ObservedAttention, attention_losses, compiled, cross_attentions
from mace_pl.training.memory import LiveBytes

N, T = 2, 77


def small_unet(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(seeded(0))
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**settings | config).requires_grad_(False).eval()


class Trained:
    """A UNet with LoRAs of three concepts, two of which are in the batch."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.loras = ConceptLoRAs(unet, ["ship", "dog", "cat"], 1, 0)
        generator = torch.Generator().manual_seed(seeded(1))
        for parameter in self.loras.parameters_list():  # B is zero at first, and A would have no gradient
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        self.latents = torch.randn(N, 4, 8, 8, generator=generator)
        self.text = torch.randn(N, T, 32, generator=generator)
        self.mask = torch.zeros(N, 1, 16, 16)
        self.mask[0, :, 4:9, 3:] = 1
        self.mask[1] = 1
        self.positions = torch.rand(N, T, generator=generator) > 0.5

    def layer_loss(self, probabilities: Tensor) -> Tensor:
        return masked_attention_norm(probabilities, self.mask, self.positions)

    def losses(self, layer_loss: Callable[[Tensor], Tensor] | None = None, checkpointing: bool = False) -> Tensor:
        self.loras.activate([0, 2])
        steps = torch.tensor([10, 500])
        return attention_losses(
            self.unet, self.latents, steps, self.text, layer_loss or self.layer_loss, checkpointing=checkpointing
        )

    def gradients(self, checkpointing: bool = False) -> list[Tensor | None]:
        for parameter in self.loras.parameters_list():
            parameter.grad = None
        self.losses(checkpointing=checkpointing).sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in self.loras.parameters_list()]


@pytest.fixture
def trained() -> Trained:
    return Trained(small_unet())


def calls(unet: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the modules without children, in the order in which they are called."""
    found: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: found.append(name))
        for name, module in unet.named_modules()
        if not list(module.children()) or name.endswith((".to_k", ".to_v"))
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


def test_nothing_after_the_last_cross_attention_is_computed(trained: Trained) -> None:
    whole = calls(trained.unet, lambda: trained.unet(trained.latents, 10, encoder_hidden_states=trained.text))
    last = max(i for i, name in enumerate(whole) if name.endswith("attn2.to_k"))
    assert len(whole) - last > 5  # the values, output, feed-forward, … of that block and the last convolution
    assert calls(trained.unet, trained.losses)[-1] == whole[last + 1] == whole[last].replace("to_k", "to_k.base")
    assert len(calls(trained.unet, trained.losses)) == last + 2


def test_nothing_but_loras_in_front_of_a_loss_is_differentiated(trained: Trained) -> None:
    inputs: dict[str, bool] = {}

    def note(module: nn.Module, args: tuple[Any, ...], name: str) -> None:
        inputs.setdefault(name, any(isinstance(x, Tensor) and x.requires_grad for x in args))

    for name, module in trained.unet.named_modules():
        module.register_forward_pre_hook(partial(note, name=name))
    gradients = trained.gradients()
    assert not any(p.grad is not None for p in trained.unet.parameters() if not p.requires_grad)
    first, last = (f"{name}.attentions.0.transformer_blocks.0" for name in ("down_blocks.0", "up_blocks.1"))
    assert not inputs["conv_in"] and not inputs["down_blocks.0.resnets.0.norm1"] and not inputs[f"{first}.attn1.to_q"]
    assert inputs["mid_block.resnets.0.norm1"]
    names = [(c, layer, part) for c in range(3) for layer in trained.loras.names for part in "AB"]
    without = {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
    used_up = max(name for name in cross_attentions(trained.unet) if name.startswith("up_blocks.1"))
    assert used_up > last
    idle = {name for name in names if name[0] == 1}
    assert without == idle | {(c, f"{used_up}.to_v", part) for c in (0, 2) for part in "AB"}


SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "upcast_attention": {"upcast_attention": True},
    "residual": {"residual_connection": True, "rescale_output_factor": 1.5},
    "normed keys": {"cross_attention_norm": "layer_norm"},
    "normed states": {"norm_num_groups": 4},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_of_a_layer_counts_as_in_diffusers(name: str) -> None:
    torch.manual_seed(seeded(0))
    switches = SWITCHES[name] | ({"cross_attention_norm_num_groups": 4} if name == "normed keys" else {})
    layer = Attention(query_dim=16, cross_attention_dim=24, heads=2, dim_head=8, **switches).eval()
    x, text = torch.randn(2, 9, 16), torch.randn(2, 5, 24)
    mask = torch.zeros(2, 1, 5).masked_fill(torch.arange(5) > 3, -1e4)
    layer.set_processor(AttnProcessor())
    expected = layer(x, encoder_hidden_states=text, attention_mask=mask)
    shown: list[Tensor] = []
    layer.set_processor(ObservedAttention("layer", lambda _, probabilities: shown.append(probabilities)))
    torch.testing.assert_close(layer(x, encoder_hidden_states=text, attention_mask=mask), expected, rtol=0, atol=0)
    assert shown[0].shape == (2, 2, 9, 5) and bool((shown[0][..., 4] == 0).all())
    close(shown[0].sum(-1), torch.ones(2, 2, 9), BY_HAND)


def test_scores_beyond_float16_are_finite_where_the_model_upcasts() -> None:
    """SD 2.1 sets ``upcast_attention``: its scores do not fit into float16."""
    torch.manual_seed(seeded(0))
    layer = Attention(query_dim=16, cross_attention_dim=24, heads=2, dim_head=8, upcast_attention=True).eval().half()
    for part in (layer.to_q, layer.to_k):
        part.weight.data *= 400
    shown: list[Tensor] = []
    layer.set_processor(ObservedAttention("layer", lambda _, probabilities: shown.append(probabilities)))
    x, text = torch.randn(2, 9, 16).half(), torch.randn(2, 5, 24).half()
    scores = layer.head_to_batch_dim(layer.to_q(x)) @ layer.head_to_batch_dim(layer.to_k(text)).transpose(1, 2)
    assert not scores.isfinite().all()  # without the upcast
    assert layer(x, encoder_hidden_states=text).isfinite().all() and shown[0].isfinite().all()


class Seen(TorchFunctionMode):
    """Counts fused attentions and keeps the shapes of everything that a softmax makes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.counts[name] += 1
        if name == "softmax":
            self.shapes.append(tuple(result.shape))
        return result


def test_self_attention_is_fused_and_probabilities_are_of_cross_attention_alone(trained: Trained) -> None:
    layers = cross_attentions(trained.unet).values()
    with Seen() as seen:
        trained.losses()
    assert seen.counts["scaled_dot_product_attention"] == len(layers)  # one self-attention in front of each
    assert [(shape[0], shape[-1]) for shape in seen.shapes] == [(N * layer.heads, T) for layer in layers]


def test_a_map_is_reduced_at_once(trained: Trained) -> None:
    """Without a backward pass no map outlives its layer; with one, each is kept once, for its own gradient."""
    maps: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []

    def layer_loss(probabilities: Tensor) -> Tensor:
        assert all(ref() is None for ref in maps)
        maps.append(weakref.ref(probabilities))
        sizes.append(probabilities.numel())
        return trained.layer_loss(probabilities)

    with torch.no_grad():
        trained.losses(layer_loss)
    assert len(maps) == len(cross_attentions(trained.unet))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-1] == T and tensor.numel() in sizes and bool((tensor >= 0).all()):  # no transposed keys
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = trained.losses()
    assert sorted(kept.values()) == sorted(sizes)
    assert losses.requires_grad


def test_checkpointing_gives_the_same_gradients_with_less_memory(trained: Trained) -> None:
    peaks, found = [], []
    for checkpointing in (False, True):
        with LiveBytes() as live:
            found.append(trained.gradients(checkpointing))
        peaks.append(live.peak)
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            close(again, plain, FLOAT32_GRADIENTS)
    assert peaks[1] < 0.7 * peaks[0]  # bytes of tensors, which no rounding changes
    assert not trained.unet.is_gradient_checkpointing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="code for the CPU is made by a C++ compiler")
def test_compiled_blocks_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a UNet of few shapes: code is made for each."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # the compiler adds to both
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(Path(tempfile.gettempdir()) / "compiled"))
    trained = Trained(
        small_unet(
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
        )
    )
    plain = trained.gradients()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled(trained.unet):
        fast = trained.gradients()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
    for expected, gradient in zip(plain, fast, strict=True):
        assert (expected is None) == (gradient is None)
        if expected is not None:
            close(gradient, expected, FLOAT32_GRADIENTS)
