"""Frozen layers give what torch's own give, forwards and backwards, and keep less."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from support.runs import train
from support.seeds import seeded
from support.tolerances import FLOAT32_PASS, RUN_LOSSES, RUN_WEIGHTS, close
from torch import Tensor, nn

from mace_pl.training.frozen_layers import frozen_layers, onednn_pays
from mace_pl.training.memory import LiveBytes


@pytest.fixture(params=["onednn", "torch"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both products, wherever the tests run: torch says of a processor what the product asks."""
    if request.param == "onednn" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no product by oneDNN")
    capability = "AVX512" if request.param == "onednn" else "AVX2"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn_pays() == (request.param == "onednn")
    return str(request.param)


@pytest.fixture
def linear() -> nn.Sequential:
    torch.manual_seed(seeded(0))
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 7, bias=False)).requires_grad_(False)


@pytest.fixture
def convolutions() -> nn.Sequential:
    torch.manual_seed(seeded(0))
    layers = [
        nn.Conv2d(8, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False),
        nn.SiLU(),
        nn.Conv2d(12, 6, 3, padding=2, dilation=2, groups=3),
        nn.Conv2d(6, 4, 1),
    ]
    return nn.Sequential(*layers).requires_grad_(False)


def both(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the network makes of x, and the gradient of a sum of its squares."""
    x = x.clone().requires_grad_()
    out = network(x)
    (out.float().square().sum(-1, keepdim=True).expand(*out.shape) * 0.5).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def assert_same(network: nn.Module, x: Tensor) -> None:
    expected = both(network, x)
    with frozen_layers(network):
        assert "forward" in vars(network[0])  # type: ignore[index]
        found = both(network, x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        close(one, other, FLOAT32_PASS)
    assert not any("forward" in vars(layer) for layer in network.modules())


@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24), (4, 2, 3, 24)])
def test_linear_layers(linear: nn.Sequential, shape: tuple[int, ...]) -> None:
    assert_same(linear, torch.randn(shape, generator=torch.Generator().manual_seed(seeded(1))))


def test_rows_that_do_not_lie_together(linear: nn.Sequential) -> None:
    assert_same(linear, torch.randn(24, 6, generator=torch.Generator().manual_seed(seeded(1))).t())


@pytest.mark.parametrize("size", [(9, 12), (8, 8)])
def test_convolutions(convolutions: nn.Sequential, size: tuple[int, int]) -> None:
    """Strides, dilation, groups, and a size that a stride does not divide."""
    assert_same(convolutions, torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(seeded(1))))


@pytest.mark.parametrize("mixed", [True, False])
def test_other_precisions(linear: nn.Sequential, convolutions: nn.Sequential, mixed: bool) -> None:
    """The backward pass runs within autocast, as in a manual training step."""
    dtype = torch.float32 if mixed else torch.float64
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        for network, x in ((linear, torch.ones(2, 24)), (convolutions, torch.ones(1, 8, 6, 6))):
            assert both(network.to(dtype), x.to(dtype))[0].dtype == (torch.bfloat16 if mixed else dtype)
            assert_same(network, x.to(dtype))


def test_layers_to_train_are_left_alone(linear: nn.Sequential) -> None:
    linear[0].weight.requires_grad_(True)
    with frozen_layers(linear):
        assert ["forward" in vars(layer) for layer in linear] == [False, False, True]
        linear(torch.ones(1, 24)).sum().backward()
    assert linear[0].weight.grad is not None


def test_layers_elsewhere_than_on_a_cpu_are_left_alone(linear: nn.Sequential, convolutions: nn.Sequential) -> None:
    for network in (linear.to("meta"), convolutions.to("meta")):
        with frozen_layers(network):
            assert not any("forward" in vars(layer) for layer in network.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_as_without(linear: nn.Sequential, convolutions: nn.Sequential) -> None:
    for network, shape in ((linear.cuda(), (2, 5, 24)), (convolutions.cuda(), (2, 8, 9, 7))):
        x = torch.randn(shape, device="cuda")
        expected = both(network, x)
        with frozen_layers(network):
            found = both(network, x)
        for one, other in zip(found, expected, strict=True):
            close(one, other, FLOAT32_PASS)


def test_one_context_within_another(linear: nn.Sequential) -> None:
    with frozen_layers(linear):
        outer = vars(linear[0])["forward"]
        with frozen_layers(linear):
            pass
        assert vars(linear[0])["forward"] is outer
    assert "forward" not in vars(linear[0])


def test_convolutions_that_pad_otherwise_are_left_alone() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect").requires_grad_(False)
    with frozen_layers(layer):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("mixed", [False, True])
def test_inputs_of_convolutions_and_lower_copies_are_not_kept(mixed: bool) -> None:
    """Two layers, each with an input of 128 kB and, in bfloat16, a copy of its weight of 72 kB."""
    torch.manual_seed(seeded(0))
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).requires_grad_(False)
    x = torch.randn(1, 64, 16, 32, requires_grad=True)

    def live() -> int:
        mixed_or_not = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
        with LiveBytes() as counted:
            with mixed_or_not:  # whose own copies go with it
                out = network(x)
            assert out.grad_fn is not None
            return counted.now

    usual = live()
    with frozen_layers(network):
        found = live()
    size = x.numel() * 2 if mixed else x.numel() * 4
    assert found == size  # what the network gives alone
    assert usual >= (2 * size + 2 * 64 * 64 * 9 * 2 if mixed else 2 * size)


class Plain(Callback):
    """Gives every layer a ``forward`` of its own, which is torch's: such layers stay as they are."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in pl_module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.forward = layer.forward  # type: ignore[method-assign]


class Watched(Callback):
    """How many frozen layers there were in each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.counts.append(sum("forward" in vars(layer) for layer in pl_module.modules()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_learns_the_same(toy_pipeline: Path, tmp_path: Path, checkpointing: bool) -> None:
    watched = Watched()
    found = train(toy_pipeline, tmp_path, trainer={"callbacks": [watched]}, gradient_checkpointing=checkpointing)
    layers = sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in found.unet.modules())
    assert watched.counts and set(watched.counts) == {layers}
    expected = train(toy_pipeline, tmp_path, trainer={"callbacks": [Plain()]}, gradient_checkpointing=checkpointing)
    for target, losses in expected.trained.losses.items():
        close(found.trained.losses[target], losses, RUN_LOSSES)
    for name in expected.refined.original:
        one, other = (module.unet.get_submodule(name).weight.detach() for module in (found, expected))
        close(one, other, RUN_WEIGHTS)
    assert not any("forward" in vars(part) for part in found.unet.modules())
