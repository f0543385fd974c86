"""Frozen layers by oneDNN give what torch's own product gives, forwards and backwards."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from runs import train
from torch import Tensor, nn

import mace_pl.products
from mace_pl.products import frozen_products, product_pays


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are the same where the product is slow."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no product by oneDNN")
    monkeypatch.setattr(mace_pl.products, "product_pays", lambda: True)


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 7, bias=False))
    return network.requires_grad_(False)


def both(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the network makes of x, and the gradient of a sum of its squares."""
    x = x.clone().requires_grad_()
    out = network(x)
    (out.float().square().sum(-1, keepdim=True).expand(*out.shape) * 0.5).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24), (4, 2, 3, 24)])
def test_values_and_gradients_are_the_same(layers: nn.Sequential, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = both(layers, x)
    with frozen_products(layers):
        assert "forward" in vars(layers[0])
        found = both(layers, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not any("forward" in vars(layer) for layer in layers)


def test_rows_that_do_not_lie_together(layers: nn.Sequential) -> None:
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).t()
    with frozen_products(layers):
        torch.testing.assert_close(both(layers, x)[1], both(layers, x.contiguous())[1], rtol=1e-6, atol=1e-7)


def test_layers_to_train_are_left_alone(layers: nn.Sequential) -> None:
    layers[0].weight.requires_grad_(True)
    with frozen_products(layers):
        assert ["forward" in vars(layer) for layer in layers] == [False, False, True]
        layers(torch.ones(1, 24)).sum().backward()
    assert layers[0].weight.grad is not None


@pytest.mark.parametrize("mixed", [True, False])
def test_other_precisions_are_those_of_torch(layers: nn.Sequential, mixed: bool) -> None:
    x = torch.ones(2, 24)
    context = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    network, x = (layers, x) if mixed else (layers.double(), x.double())
    with context:
        expected = both(network, x)
        with frozen_products(network):
            found = both(network, x)
    assert found[0].dtype == (torch.bfloat16 if mixed else torch.float64)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_it_pays_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch, layers: nn.Sequential) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not product_pays()
    with frozen_products(layers):
        assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_learns_the_same(
    toy_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    calls = []
    usual = mace_pl.products._product

    def counted(*arguments: Tensor | None) -> Tensor:
        calls.append(arguments)
        return usual(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(mace_pl.products, "_product", counted)
        found = train(toy_pipeline, tmp_path, gradient_checkpointing=checkpointing)
    assert calls
    monkeypatch.setattr(mace_pl.products, "product_pays", lambda: False)
    expected = train(toy_pipeline, tmp_path, gradient_checkpointing=checkpointing)
    for target, losses in expected.losses.items():
        assert found.losses[target] == pytest.approx(losses, rel=1e-4)
    for name in expected.original:
        one, other = (module.unet.get_submodule(name).weight.detach() for module in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not any("forward" in vars(part) for part in found.unet.modules())
