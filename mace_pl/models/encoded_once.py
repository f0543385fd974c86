"""The prompts of many requests, encoded once each and in full batches, in memory that does not grow with their number.

P prompts, T tokens, D text width, E width of a pooled embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from mace_pl.training.tensor_store import TensorStore

BATCH = 64  # prompts
Row = tuple[Tensor, Tensor | None]  # of a prompt: [T, D], and [E] where the model has pooled text


def encoded_once(
    encode: Callable[[Sequence[str]], tuple[Tensor, Tensor | None]], requests: Sequence[Sequence[str]]
) -> Iterator[Mapping[str, Row]]:
    """The embeddings of each request by prompt, on the CPU, in the order of the requests.

    Equal prompts are encoded once, whichever requests have them, and a batch takes in the next request too.
    Memory holds a batch or two; prompts that a later request has again lie on the disk until then.

    Args:
        encode: embeddings [P, T, D] and pooled ones [P, E] of prompts.
        requests: the prompts of each.
    """
    left = Counter(chain.from_iterable(requests))
    ahead = iter(list(left))  # each prompt once, by its first request
    ready: dict[str, Row] = {}
    again, store = dict[str, list[int]](), TensorStore()
    for request in requests:
        while any(prompt not in ready and prompt not in again for prompt in request):
            batch = list(islice(ahead, BATCH))
            texts, pooled = (None if x is None else x.cpu() for x in encode(batch))
            assert texts is not None
            ready |= {p: (texts[i], None if pooled is None else pooled[i]) for i, p in enumerate(batch)}
        rows = {p: ready[p] if p in ready else _read(store, again[p]) for p in request}
        yield rows
        left.subtract(request)
        for prompt in rows:
            row = ready.pop(prompt, None)
            if row is not None and left[prompt]:
                again[prompt] = [store.add(part) for part in row if part is not None]


def _read(store: TensorStore, places: Sequence[int]) -> Row:
    text, *pooled = (store[place] for place in places)
    return text, pooled[0] if pooled else None


def stacked(rows: Mapping[str, Row], prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Embeddings of some of the prompts, [P, T, D], and pooled ones [P, E] where there are some."""
    pooled = [row for row in (rows[prompt][1] for prompt in prompts) if row is not None]
    return torch.stack([rows[prompt][0] for prompt in prompts]), torch.stack(pooled) if pooled else None
