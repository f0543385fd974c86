"""What a call of a network takes on this machine: timed with one sample and with a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mace_pl.training.memory import LiveBytes, free_bytes

FEW = 4  # samples of the second call that is timed
KERNELS = 2  # times the tensors' bytes: what a call takes with its kernels' workspaces (an H100: 1.1 to 2.8)
PATIENCE = 0.5  # seconds: a call of one sample that takes longer is not timed with more of them
HASTE = 2.0  # seconds: one that takes less is timed twice


@dataclass(frozen=True)
class Taken:
    """What work takes.

    Attributes:
        seconds: how long.
        bytes: the most that its tensors take at once, beside what was there before.
    """

    seconds: float = 0.0
    bytes: float = 0.0

    def times(self, count: float) -> Taken:
        """The same work again and again."""
        return Taken(count * self.seconds, self.bytes if count else 0.0)

    def then(self, other: Taken) -> Taken:
        """This work, then another."""
        return Taken(self.seconds + other.seconds, max(self.bytes, other.bytes))


@dataclass(frozen=True)
class Call:
    """What a call takes by its samples: a straight line.

    Attributes:
        one: seconds with one sample.
        more: seconds of each further one.
        bytes: of each sample.
    """

    one: float
    more: float
    bytes: float

    def of(self, samples: float) -> Taken:
        """With so many samples."""
        return Taken(self.one + (samples - 1) * self.more, samples * self.bytes)


@dataclass(frozen=True)
class Passes:
    """How often the whole network is called.

    Attributes:
        images: that are generated before.
        ahead: pairs of calls without a gradient, and of the samples of each.
        back: likewise, of calls with one.
    """

    images: int
    ahead: Sequence[tuple[int, int]]
    back: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Machine:
    """Where calls are timed.

    Attributes:
        device: that does the work.
        clock: seconds; those of the wall, in which other programs take their part too.
    """

    device: torch.device
    clock: Callable[[], float] = time.perf_counter

    def timed(self, call: Callable[[int], object]) -> Call:
        """What a call takes.

        The first one, of one sample, warms the machine up, and its tensors are counted. Then one sample and a few are
        timed; where one takes long, or a few might not fit into the memory that is left, each further one is taken to
        take as long.

        Args:
            call: does the work with N samples.
        """
        with LiveBytes() as live:
            self.seconds(call, 1)
        one = self.seconds(call, 1)
        if one < HASTE:  # another program may have held it up
            one = min(one, self.seconds(call, 1))
        if one > PATIENCE or FEW * KERNELS * live.peak > free_bytes(self.device):
            return Call(one, one, live.peak)
        few = min(self.seconds(call, FEW) for _ in range(2))
        return Call(one, max(few - one, 0.0) / (FEW - 1), live.peak)

    def seconds(self, call: Callable[[int], object], samples: int) -> float:
        """One call, until the device is done with it."""
        start = self.clock()
        call(samples)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock() - start
