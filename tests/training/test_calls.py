"""Calls that are timed for an estimate."""

from __future__ import annotations

import pytest
import torch

from mace_pl.training import calls
from mace_pl.training.calls import FEW, Machine

SIZE = 1024  # bytes of a sample


@pytest.mark.parametrize(("free", "few"), [(100 * FEW * SIZE, True), (FEW * SIZE, False)])
def test_no_more_samples_are_tried_than_the_memory_holds(free: int, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card that a step of one concept just fits, one of four would end the run before it began."""
    monkeypatch.setattr(calls, "free_bytes", lambda _: free)
    asked: list[int] = []

    def call(samples: int) -> None:
        asked.append(samples)
        torch.zeros(samples, SIZE // 4)

    found = Machine(torch.device("cpu"), lambda: 0.1 * len(asked)).timed(call)
    assert (FEW in asked) == few and found.bytes == SIZE
    assert few or found.more == found.one > 0


@pytest.mark.parametrize(("slow", "held"), [(1.0, False), (3.0, True)])
def test_a_call_that_was_held_up_is_timed_again(slow: float, held: bool) -> None:
    """One hiccup of a second would stand for each of thousands of samples; one that may be the machine's own stays."""
    quick, now = 0.125, [0.0]
    waits = iter([quick, slow])

    def call(samples: int) -> None:
        now[0] += next(waits, quick * samples)

    found = Machine(torch.device("cpu"), lambda: now[0]).timed(call)
    assert (found.one, found.more) == ((slow, slow) if held else (quick, quick))
