"""How time and memory grow with the number of concepts on the bundled model.

Run it as ``python benchmarks/growth.py --output growth.png``: some minutes on two CPU cores. Each number
of concepts runs in a process of its own, from the model on the disk to the edited weights, on made-up images.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Peak, alone, made_up, quiet, show_table
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from mace_pl.data.concepts import ConceptData
from mace_pl.models.pipeline import image_size, load_pipeline
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.training.trainer import MaceTrainer


def measure(pretrained: str, concepts: list[dict[str, str]], steps: int, concepts_at_once: int) -> tuple[float, float]:
    """Seconds of a whole run, and its peak in MB beyond the process with its libraries."""
    peak, started = Peak(), time.perf_counter()
    trainer = MaceTrainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = ConceptData(concepts, steps_per_concept=steps, concepts_per_batch=concepts_at_once)
    trainer.fit(ConceptErasure(pretrained, lr=1e-3), datamodule=data)
    return time.perf_counter() - started, (peak.bytes() - peak.before) / 2**20


def plot(counts: list[int], seconds: list[float], memory: list[float], lines: list[np.ndarray], output: Path) -> None:
    """Both against the number of concepts, with their lines."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, line, name in ((left, seconds, lines[0], "seconds"), (right, memory, lines[1], "peak MB")):
        axes.plot(counts, values, "o")
        axes.plot(counts, np.polyval(line, counts), "--", label=f"{line[1]:.3g} + {line[0]:.3g} n")
        axes.set(xlabel="concepts n", ylabel=name, ylim=(0, None))
        axes.legend()
    figure.savefig(output, dpi=150)


def benchmark(
    output: str,
    pretrained: str = "checkpoints/emoji",
    largest: int = 64,
    steps: int = 50,
    concepts_at_once: int = 8,
    threads: int | None = None,
) -> dict[str, float]:
    """Print the table and draw the plot.

    Args:
        output: the plot, a PNG file.
        pretrained: the pipeline.
        largest: numbers of concepts are 1, 2, 4, … up to this.
        steps: of each concept.
        concepts_at_once: concepts that are trained at once.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    counts = [2**i for i in range(largest.bit_length()) if 2**i <= largest]
    with tempfile.TemporaryDirectory() as temporary:
        concepts = made_up(Path(temporary), largest, image_size(load_pipeline(pretrained)))
        measured = [alone(measure, pretrained, concepts[:n], steps, concepts_at_once) for n in counts]
    seconds, memory = [s for s, _ in measured], [m for _, m in measured]
    lines = [np.polyfit(counts, values, 1) for values in (seconds, memory)]
    first = seconds[0], memory[0]
    rows = [
        [str(n), f"{s:.1f}", f"{s / n:.2f}", f"{s / first[0]:.2f}", f"{m:,.0f}", f"{m / first[1]:.2f}"]
        for n, s, m in zip(counts, seconds, memory, strict=True)
    ]
    columns = ["concepts", "seconds", "per concept", "ratio to one", "peak MB beyond the process", "ratio to one"]
    show_table(f"a whole run, {steps} steps per concept, {concepts_at_once} at once", columns, rows)
    print(f"seconds {lines[0][1]:.2f} + {lines[0][0]:.3f} n, peak MB {lines[1][1]:.0f} + {lines[1][0]:.2f} n")
    plot(counts, seconds, memory, lines, Path(output))
    return {"seconds": float(lines[0][0]), "memory": float(lines[1][0])}


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
