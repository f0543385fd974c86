"""Shards concepts over ranks, and the images of one concept where there are more ranks than concepts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Share:
    """What one rank trains.

    Attributes:
        concepts: their indices.
        images: which of the images of each step, by their number in the step.
        ranks: the ranks that train the same concepts; their gradients are added up. Empty where nothing is left.
    """

    concepts: Sequence[int]
    images: Sequence[int]
    ranks: Sequence[int]


def share_of(rank: int, world: int, concepts: int, images: int) -> Share:
    """The share of a rank: every ``world``-th concept, or some of the images of one where concepts are fewer.

    Args:
        rank: this one.
        world: how many there are.
        concepts: how many concepts are trained.
        images: how many a step of one concept averages over; more ranks than that cannot share it.
    """
    if world <= concepts:
        return Share(range(rank, concepts, world), range(images), (rank,))
    concept = rank % concepts
    ranks = range(concept, world, concepts)[:images]
    if rank not in ranks:
        return Share((), (), ())
    return Share((concept,), range(ranks.index(rank), images, len(ranks)), ranks)


def group_of(rank: int, world: int, concepts: int, images: int) -> ProcessGroup | None:
    """The process group in which a rank adds up gradients; None where it has its concepts to itself.

    All ranks call this together.
    """
    joined: ProcessGroup | None = None
    for first in range(min(concepts, world)):
        ranks = share_of(first, world, concepts, images).ranks
        if len(ranks) > 1:
            group = torch.distributed.new_group(list(ranks))
            joined = group if rank in ranks else joined
    return joined


def add_up(parameters: Sequence[nn.Parameter], losses: Tensor, group: ProcessGroup) -> Tensor:
    """Replace the gradients by their sums over the group's ranks; returns the sum of the losses [N]."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sums = torch.cat([losses.detach().to(gradients[0].dtype), *(g.flatten() for g in gradients)])
    torch.distributed.all_reduce(sums, group=group)
    parts: list[Tensor] = list(sums.split([len(losses), *(g.numel() for g in gradients)]))
    for gradient, part in zip(gradients, parts[1:], strict=True):
        gradient.copy_(part.view_as(gradient))
    return parts[0]


def unsynchronised(strategy: Strategy) -> AbstractContextManager[None]:
    """Within the context a backward pass leaves gradients with their rank: DDP would average all of them."""
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
