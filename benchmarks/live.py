"""Solving and swapping other strengths of 100 concepts at the shapes of SD 1.4, as each move of a slider does.

Run it as ``python benchmarks/live.py``: a minute or two on two CPU cores, most of it to make up sums and LoRAs of rank
1 from a seed. What does not depend on strengths is solved once for a set of targets; all of them are moved at each
step, which is the most work there is. Texts of names that are preserved are not encoded here.
"""

from __future__ import annotations

import time

import torch
from common import quiet, show_table
from jsonargparse import auto_cli
from torch import nn

from mace_pl.methods.base import Sums
from mace_pl.methods.closed_form import Preservation, gram
from mace_pl.methods.edit import ConceptSums, SumsOnDisk, counted
from mace_pl.methods.fusion import FusedLoras
from mace_pl.methods.mace import MaceRefinement
from mace_pl.stages.live import Changes

OUTPUTS = [320] * 10 + [640] * 10 + [1280] * 12  # rows of the keys and values of SD 1.4's cross-attentions


def made_up(concepts: int, width: int, layers: list[nn.Linear]) -> tuple[SumsOnDisk, dict[str, dict]]:
    """Sums of few tokens and LoRAs; how many tokens there were costs no time here."""
    sums, loras = SumsOnDisk(), {}
    for i in range(concepts):
        tokens, anchors = torch.randn(2, 64, width, generator=torch.Generator().manual_seed(i))
        own = gram(tokens, tokens)
        sums.add(str(i), ConceptSums(own, gram(anchors, tokens), own.clone(), counted(tokens)))
        loras[str(i)] = {str(n): (torch.randn(1, width), torch.randn(len(W.weight), 1)) for n, W in enumerate(layers)}
    return sums, loras


def benchmark(concepts: int = 100, width: int = 768, moves: int = 5, threads: int | None = None) -> float:
    """Print wall-clock and processor seconds of a set of targets, and of one move of the sliders, the median.

    Args:
        concepts: how many are erased.
        width: of the text embeddings.
        moves: how often the sliders are moved.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers = [nn.Linear(width, rows, bias=False).requires_grad_(False) for rows in OUTPUTS]
    original = {str(n): layer.weight.detach().clone() for n, layer in enumerate(layers)}
    sums, loras = made_up(concepts, width, layers)
    preservation, seen = Preservation(identity=1.0), []
    started, used = time.perf_counter(), time.process_time()
    total, changes = sums.total, Changes()
    for target in sums:
        changes.add(target, sums[target])
    fused = FusedLoras.of(sums, loras, preservation, total)
    first = (time.perf_counter() - started, time.process_time() - used)
    for move in range(moves):
        started, used = time.perf_counter(), time.process_time()
        strengths = {target: (move + 1) / (moves + 1) for target in sums}
        now = changes.weighted(total, strengths)
        refined = MaceRefinement().solve(Sums(now.F, now.G, preservation, original, float(now.pairs)))
        for name, weight in fused.edit(refined, strengths).weights(original).items():
            layers[int(name)].weight.data.copy_(weight)
        seen.append((time.perf_counter() - started, time.process_time() - used))
    median = sorted(seen)[len(seen) // 2]
    rows = [[what, *(f"{s:.2f}" for s in took)] for what, took in (("a set of targets", first), ("a move", median))]
    title = f"{concepts} concepts, width {width}, {len(OUTPUTS)} matrices, {torch.get_num_threads()} threads"
    show_table(title, ["what is solved", "seconds", "processor seconds"], rows)
    return median[0]


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
