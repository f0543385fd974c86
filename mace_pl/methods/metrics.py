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


class PictureScores(Metric):
    """What is measured on each single picture, in one table per figure.

    A picture is drawn by one process, so the sum over processes fills each cell once, and what is computed from the
    tables does not depend on the number of processes.

    Args:
        words: W, the number of words that are drawn.
        templates: P, the number of prompts of each.
        seeds: S, the pictures of each prompt.
        width: D of the features.
    """

    full_state_update = False
    drawn: Tensor
    seen: Tensor
    blank: Tensor
    probability: Tensor
    clip_score: Tensor
    distance: Tensor
    features: Tensor

    def __init__(self, words: int, templates: int, seeds: int, width: int) -> None:
        super().__init__()
        shape = (words, templates, seeds)
        for name in ("drawn", "seen", "blank"):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("probability", "clip_score", "distance"):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("features", torch.zeros(*shape, width), dist_reduce_fx="sum")

    def update(
        self,
        cells: Tensor,
        seen: Tensor,
        blank: Tensor,
        probability: Tensor,
        clip_score: Tensor,
        distance: Tensor,
        features: Tensor,
    ) -> None:
        """Add N pictures.

        Args:
            cells: [N, 3] indices of word, template and seed.
            seen: [N] the class that the judge sees, −1 where it is none of them.
            blank: [N] bool, where the judge sees nothing at all, such as no face.
            probability: [N] of the class that each should show.
            clip_score: [N].
            distance: [N] to the original model's picture of the same cell.
            features: [N, D].
        """
        cell = cells.unbind(1)
        self.drawn[cell] = 1
        self.seen[cell] = seen
        self.blank[cell] = blank.to(self.blank)
        self.probability[cell] = probability.to(self.probability)
        self.clip_score[cell] = clip_score.to(self.clip_score)
        self.distance[cell] = distance.to(self.distance)
        self.features[cell] = features.to(self.features)

    def compute(self) -> dict[str, Tensor]:
        """The tables: ``drawn``, ``seen``, ``blank``, ``probability``, ``clip_score``, ``distance``; ``features``.

        [W, P, S] each, the features [W, P, S, D]; all on the CPU.
        """
        names = ("drawn", "seen", "blank", "probability", "clip_score", "distance", "features")
        return {name: getattr(self, name).cpu() for name in names}
