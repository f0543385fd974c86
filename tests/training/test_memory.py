"""Live bytes are those of the tensors; groups fit into what is free."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mace_pl.training.memory import LARGEST, LiveBytes, concepts_at_once, free_bytes

MB = 2**20
QUARTER = 2**18  # float32 values of a megabyte


def test_bytes_count_while_their_tensor_lives() -> None:
    before = torch.ones(QUARTER)
    with LiveBytes() as live:
        one = before + 1
        two = one[:100].view(10, 10)  # the same storage
        assert live.now == MB
        three = one * one
        assert (live.now, live.peak) == (2 * MB, 2 * MB)
        del one
        assert live.now == 2 * MB  # two needs it
        del two
        assert live.now == MB
        before += three  # not made here
        del three
        assert (live.now, live.peak) == (0, 2 * MB)


def test_what_the_backward_pass_keeps_and_makes_counts() -> None:
    weight = torch.ones(QUARTER, requires_grad=True)
    with LiveBytes() as live:
        loss = weight.exp().exp().sum()  # keeps both results
        assert 2 * MB <= live.now < 2.1 * MB  # and scalars
        loss.backward()
        assert live.peak >= 3 * MB
        del loss
        assert MB <= live.now < 1.1 * MB  # the gradient


def available() -> int:
    """Bytes by the kernel's own word: of the machine, or what the limit of a container leaves."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = [int(rows["MemAvailable"].split()[0]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_host_has_free_what_the_kernel_says() -> None:
    before, free, after = available(), free_bytes(torch.device("cpu")), available()
    assert min(before, after) - 256 * MB <= free <= max(before, after) + 256 * MB  # others take and give back meanwhile


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_free_memory() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = free_bytes(device)
    kept = torch.ones(64 * QUARTER, device=device)
    assert free_bytes(device) <= before - 32 * MB
    del kept


@pytest.mark.parametrize(
    ("free", "cost", "concepts", "expected"),
    [
        (1000, 100, 3, 3),  # all fit
        (1000, 100, 7, 7),
        (1000, 100, 8, 4),  # seven would fit; two groups of four take as many steps as seven and one
        (1000, 300, 5, 2),
        (1000, 5000, 5, 1),  # one always has to fit
        (10**9, 1, 100, 15),  # at most LARGEST, in seven groups
    ],
)
def test_groups_fit_and_are_of_nearly_equal_size(free: int, cost: int, concepts: int, expected: int) -> None:
    found = concepts_at_once(free, cost, concepts)
    assert found == expected <= LARGEST
