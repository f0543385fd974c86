"""Processes that compute one thing together: each does a share of its pieces, and all have the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mace_pl.errors import UserError

T = TypeVar("T")
STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process


@dataclass(frozen=True)
class Team:
    """This process among those that work together.

    Attributes:
        rank: its number.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def size(self, count: int, most: int) -> int:
        """Of what size pieces are, so that every process has one where there are as many items."""
        return max(1, min(most, -(-count // self.world)))

    def own(self, pieces: Sequence[T]) -> Sequence[T]:
        """This process's share."""
        return pieces[self.rank :: self.world]

    def together(self, own: Sequence[T]) -> list[T]:
        """What all have made of their shares, in the order of the pieces, on every process."""
        if self.world == 1:
            return list(own)
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, list(own))
        return [parts[i % self.world][i // self.world] for i in range(sum(len(part) for part in parts))]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by their sums over the processes."""
        if self.world == 1:
            return
        sums = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(sums)
        for tensor, part in zip(tensors, sums.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            torch.distributed.barrier()


def pieces_of(count: int, size: int) -> list[slice]:
    """So many items in pieces of at most a size."""
    return [slice(start, start + size) for start in range(0, count, size)]


@contextmanager
def launched(on_gpu: bool) -> Iterator[Team]:
    """The processes that torchrun has started; this one alone where it has started none.

    Args:
        on_gpu: whether each has a GPU.

    Raises:
        UserError: they do not know of each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Team()
        return
    missing = [name for name in STARTED if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world} without {missing[0]}: the processes do not know of each other. Start them by torchrun "
            f"--nproc_per_node {world} -- erase.py … (without -- it takes --run for an option of its own)."
        )
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Team(torch.distributed.get_rank(), world)
    finally:
        torch.distributed.destroy_process_group()
