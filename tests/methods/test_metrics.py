"""The Gram metric against a plain loop, under casts, and merged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.seeds import seeded
from support.tolerances import FLOAT64_SUMS, close
from torch import Tensor, nn

from mace_pl.methods.metrics import GramMetric


def plain_gram(embeddings: Tensor, counts: list[int]) -> Tensor:
    """[D, D]: the definition, one token at a time."""
    gram = torch.zeros(embeddings.shape[-1], embeddings.shape[-1], dtype=torch.float64)
    for caption, count in zip(embeddings.double(), counts, strict=True):
        for token in caption:
            gram += count * torch.outer(token, token)
    return gram


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(seeded(0)))


def test_sum_equals_a_plain_loop(embeddings: Tensor) -> None:
    metric = GramMetric(4)
    metric.update(embeddings[:3], torch.tensor([1, 4, 2]))
    metric.update(embeddings[3:])
    result = metric.compute()
    close(result["gram"], plain_gram(embeddings, [1, 4, 2, 1, 1]), FLOAT64_SUMS)
    assert result["captions"] == 9
    assert result["tokens"] == 63


def test_counts_equal_repetition(embeddings: Tensor) -> None:
    counted, repeated = GramMetric(4), GramMetric(4)
    counts = torch.tensor([3, 1, 2, 5, 1])
    counted.update(embeddings, counts)
    repeated.update(embeddings.repeat_interleave(counts, dim=0))
    for name, value in counted.compute().items():
        close(value, repeated.compute()[name], FLOAT64_SUMS)


@pytest.mark.parametrize(
    "cast",
    [
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.float,
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(torch.float16).to("cpu"),
        lambda m: m.type(torch.float32),
        lambda m: m.metric.set_dtype(torch.float16),
    ],
    ids=["half", "bfloat16", "float", "to_bfloat16", "to_half_cpu", "type", "set_dtype"],
)
def test_states_stay_float64(cast: Callable[[nn.Module], object], embeddings: Tensor) -> None:
    owner = nn.Module()
    owner.linear = nn.Linear(2, 2)
    owner.metric = metric = GramMetric(4)
    metric.update(embeddings)
    before = metric.gram.clone()
    cast(owner)
    torch.testing.assert_close(metric.gram, before, rtol=0, atol=0)  # assert_close compares the dtype too
    metric.reset()
    assert metric.gram.dtype == torch.float64
    assert metric.captions.dtype == torch.int64
    metric.update(embeddings.bfloat16())
    expected = plain_gram(embeddings.bfloat16(), [1] * 5)
    close(metric.compute()["gram"], expected, FLOAT64_SUMS)


def test_autocast_does_not_narrow_the_sum(embeddings: Tensor) -> None:
    metric = GramMetric(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(embeddings)
    close(metric.compute()["gram"], plain_gram(embeddings, [1] * 5), FLOAT64_SUMS)


def test_partial_sums_add(embeddings: Tensor) -> None:
    whole, first, second = GramMetric(4), GramMetric(4), GramMetric(4)
    whole.update(embeddings)
    first.update(embeddings[:2])
    second.update(embeddings[2:])
    total = first.compute()["gram"] + second.compute()["gram"]
    close(total, whole.compute()["gram"], FLOAT64_SUMS)


@pytest.mark.parametrize("shape", [(2, 7, 3), (7, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="embeddings of shape"):
        GramMetric(4).update(torch.zeros(shape))


@pytest.mark.parametrize("counts", [torch.ones(2, dtype=torch.int64), torch.ones(5)])
def test_wrong_counts_are_refused(counts: Tensor, embeddings: Tensor) -> None:
    with pytest.raises(ValueError, match="counts of shape"):
        GramMetric(4).update(embeddings, counts)


def test_width_must_be_positive() -> None:
    with pytest.raises(ValueError, match="width=0"):
        GramMetric(0)
