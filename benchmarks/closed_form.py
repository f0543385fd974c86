"""Stages 1 and 3 of 100 concepts at the shapes of SD 1.4, beside the textbook form.

Run it as ``python benchmarks/closed_form.py``: many minutes on two CPU cores, nearly all of them for
the textbook form. Embeddings are given: 30 prompts of 77 tokens of width 768 for each concept, made from a seed when
they are asked for, without counting the time; so are the 32 matrices and LoRAs of rank 1. The textbook form needs all
tokens for each matrix and keeps them. Each form runs in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from common import Peak, alone, quiet, show_table
from jsonargparse import auto_cli
from reference import textbook_fuse, textbook_refine
from torch import Tensor

from mace_pl.methods.closed_form import Preservation, apply_edit, gram
from mace_pl.methods.edit import ConceptSums, SumsOnDisk, refinement
from mace_pl.methods.fusion import fusion

OUTPUTS = [320] * 10 + [640] * 10 + [1280] * 12  # rows of the keys and values of SD 1.4's cross-attentions
PRIOR = 1e-4  # weights of the published settings for celebrities
LARGEST_ERROR = 1e-2  # relative; the textbook form is in float32


class Given:
    """What both forms start from.

    Args:
        concepts: how many.
        prompts: of each.
        width: D.
        matrices: how many of the 32.
    """

    def __init__(self, concepts: int, prompts: int, width: int, matrices: int) -> None:
        self.concepts, self.prompts, self.width = concepts, prompts, width
        self.seconds = 0.0  # that making tokens took; not counted
        self.outputs = OUTPUTS[:: max(1, len(OUTPUTS) // matrices)][:matrices]
        self.prior = self.tokens(-1, 0)
        self.prior = self.prior.T @ self.prior * 1e4  # as of many captions

    def random(self, seed: tuple[int, int], *shape: int) -> Tensor:
        """Values from a seed."""
        generator = torch.Generator().manual_seed(1000 * (seed[0] + 2) + seed[1])
        return torch.randn(*shape, generator=generator)

    def tokens(self, concept: int, which: int) -> Tensor:
        """[prompts · 77, D] of the target (0) or the anchor (1)."""
        started = time.perf_counter()
        made = self.random((concept, which), self.prompts * 77, self.width)
        self.seconds += time.perf_counter() - started
        return made

    def matrix(self, layer: int) -> Tensor:
        """W [O, D]."""
        return self.random((layer, 2), self.outputs[layer], self.width) * self.width**-0.5

    def lora(self, concept: int, layer: int) -> tuple[Tensor, Tensor]:
        """A [1, D], B [O, 1]."""
        seed = 10 + layer
        A = self.random((concept, seed), 1, self.width) * self.width**-0.5
        return A, self.random((concept, seed + 100), self.outputs[layer], 1) * 0.1


def ours(given: Given) -> Iterator[Tensor]:
    """The edited matrices as a run makes them: sums of one concept at a time, two solves, one product per layer."""
    layers = range(len(given.outputs))
    sums = SumsOnDisk()
    for c in range(given.concepts):
        target, anchor = given.tokens(c, 0), given.tokens(c, 1)
        grams = gram(target, target)  # all tokens co-exist here, so that F of stages 1 and 3 are the same
        sums.add(str(c), ConceptSums(grams, gram(anchor, target), grams))
    preservation = Preservation(prior=given.prior, prior_weight=PRIOR)
    loras = {str(c): {str(layer): given.lora(c, layer) for layer in layers} for c in range(given.concepts)}
    edit = fusion(refinement(sums, preservation), sums, loras, preservation)
    for layer in layers:
        yield apply_edit(given.matrix(layer), edit.R, *edit.factors[str(layer)])


def textbook(given: Given) -> Iterator[Tensor]:
    """The same by every token through every matrix."""
    targets = [given.tokens(c, 0) for c in range(given.concepts)]
    anchors = [given.tokens(c, 1) for c in range(given.concepts)]
    S = PRIOR * given.prior
    for layer in range(len(given.outputs)):
        W = given.matrix(layer)
        refined = textbook_refine(W, targets, anchors, S)
        yield textbook_fuse(W, refined, targets, [given.lora(c, layer) for c in range(given.concepts)], S)


def measure(form: str, *size: int) -> tuple[float, float, list[Tensor]]:
    """Seconds, peak in MB beyond the process, and a corner of each matrix."""
    given = Given(*size)
    torch.eye(64) @ torch.eye(64)  # threads and libraries are there before the peak is counted
    given.seconds = 0.0
    peak, started = Peak(), time.perf_counter()
    corners = [W[:8, :8].clone() for W in {"ours": ours, "textbook": textbook}[form](given)]
    return time.perf_counter() - started - given.seconds, (peak.bytes() - peak.before) / 2**20, corners


def benchmark(
    concepts: int = 100, prompts: int = 30, width: int = 768, matrices: int = 32, threads: int | None = None
) -> float:
    """Print seconds, peaks and their ratios.

    Args:
        concepts: how many are erased.
        prompts: of each.
        width: of the text embeddings.
        matrices: how many of SD 1.4's 32 keys and values.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    size = (concepts, prompts, width, matrices)
    seconds, memory, expected = alone(measure, "textbook", *size)
    own_seconds, own_memory, corners = alone(measure, "ours", *size)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(corners, expected, strict=True)]
    if not max(errors) < LARGEST_ERROR:
        raise ValueError(f"the two forms differ by {max(errors):.1e}")
    faster, share = seconds / own_seconds, own_memory / memory
    rows = [
        ["textbook", f"{seconds:.1f}", "1.0", f"{memory:,.0f}", "1.00"],
        ["ours", f"{own_seconds:.1f}", f"{faster:.1f}", f"{own_memory:,.0f}", f"{share:.2f}"],
    ]
    title = f"stages 1 and 3 of {concepts} concepts, {prompts} prompts, width {width}, {matrices} matrices"
    show_table(title, ["form", "seconds", "times faster", "peak MB beyond the process", "ratio"], rows)
    print(f"largest relative difference of a matrix {max(errors):.1e}")
    return faster


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
