"""The Gram metric: the sum of e eᵀ over captions, exact on any number of processes."""

# N captions, T tokens of a caption, D width of the text embeddings

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

BLOCK = 192  # columns of the Gram matrix that are summed at once: small blocks save work, large ones multiply faster


class GramMetric(Metric):
    """P = Σ e^p (e^p)ᵀ over captions and tokens, with the counts of both (method, identity 2).

    The states are sums, so shards, processes and machines add up to the same numbers. They stay in float64 (counts in
    int64) whatever dtype the owning module is cast to; only the device follows the module.

    Args:
        width: D, the width of the text embeddings.
    """

    full_state_update = False
    gram: Tensor
    tokens: Tensor
    captions: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be at least 1. Give the width of the text embeddings.")
        self.width = width
        self.add_state("gram", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("captions", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, embeddings: Tensor, counts: Tensor | None = None, lengths: Tensor | None = None) -> None:
        """Add a batch of captions.

        Args:
            embeddings: [N, T, D], any floating dtype; cast to float64 here.
            counts: [N], how often each caption occurs; once each when left out.
            lengths: [N], how many of its first tokens are summed; all when left out.
        """
        if embeddings.ndim != 3 or embeddings.shape[-1] != self.width:
            raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} must be [N, T, {self.width}].")
        n, t, d = embeddings.shape
        if counts is None:
            counts = torch.ones(n, dtype=torch.int64)
        if counts.shape != (n,) or counts.is_floating_point():
            raise ValueError(f"counts of shape {tuple(counts.shape)} and {counts.dtype} must be [{n}] integers.")
        counts = counts.to(self.captions)
        self.captions += counts.sum()
        counts_k = counts.repeat_interleave(t)  # K = N·T tokens, fewer where lengths are given
        e_kd = embeddings.reshape(n * t, d)
        if lengths is not None:
            inside = (torch.arange(t, device=counts.device) < lengths.to(counts.device).unsqueeze(1)).reshape(n * t)
            e_kd, counts_k = e_kd[inside], counts_k[inside]
        self.tokens += counts_k.sum()
        e_kd = e_kd.to(self.gram)
        weights_k1 = None if bool((counts == 1).all()) else counts_k.to(self.gram).unsqueeze(1)
        # the matrix is symmetric: only blocks on and above its diagonal are summed, compute() mirrors them
        for start in range(0, d, BLOCK):
            end = min(start + BLOCK, d)
            right = e_kd[:, start:end] if weights_k1 is None else weights_k1 * e_kd[:, start:end]
            self.gram[:end, start:end] += e_kd[:, :end].T @ right

    def compute(self) -> dict[str, Tensor]:
        """The sums: ``gram`` [D, D] float64, exactly symmetric; ``tokens`` and ``captions`` int64 scalars."""
        gram = self.gram.triu()
        return {"gram": gram + gram.triu(1).T, "tokens": self.tokens, "captions": self.captions}

    def set_dtype(self, dst_type: str | torch.dtype) -> GramMetric:
        """Keep float64: a narrower sum would lose the digits that the solves need."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow ``fn`` to its device only; ``.half()``, ``.to(bfloat16)`` and the like change nothing here."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=fn(tensor.new_empty(0)).device)

        return super()._apply(move, exclude_state)


class ClassCounts(Metric):
    """How often the pictures of each word were given each class, and the mean probabilities.

    Args:
        words: W, the number of words that are drawn.
        classes: C, the number of classes.
    """

    counts: Tensor
    probabilities: Tensor

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(words, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("probabilities", torch.zeros(words, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, words: Tensor, probabilities: Tensor) -> None:
        """Add N pictures: ``words`` [N] indices, ``probabilities`` [N, C]."""
        chosen = torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).double()
        self.counts.index_add_(0, words, chosen)
        self.probabilities.index_add_(0, words, probabilities.double())

    def compute(self) -> dict[str, Tensor]:
        """``top1`` and ``probability``, [W, C] each, rows summing to one."""
        total = self.counts.sum(1, keepdim=True)
        return {"top1": self.counts / total, "probability": self.probabilities / total}
