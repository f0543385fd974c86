"""How many samples a second stage 2 trains on the bundled model, beside a plain reference.

Run it as ``python benchmarks/training.py``: some minutes on two CPU cores. 16 concepts with made-up
images are trained at once by the real module; the reference (``reference.py``) trains one of them. The two take
turns. Ours counts everything from the encoding of the images to the last step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import made_up, quiet, show_table
from jsonargparse import auto_cli
from lightning import Callback
from reference import PlainTraining

from mace_pl.concepts.tokens import attended_positions
from mace_pl.data.concepts import ConceptData
from mace_pl.models.pipeline import image_size, load_pipeline
from mace_pl.modules.concept_erasure import ConceptErasure
from mace_pl.training.trainer import MaceTrainer


class Clock(Callback):
    """When stage 2 began, and when its last step ended."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Callbacks come before the module, which encodes the images now."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The last one counts."""
        self.ended = time.perf_counter()


def ours(pretrained: str, concepts: list[dict[str, str]], steps: int, concepts_at_once: int | None) -> float:
    """Samples per second of the real module."""
    data = ConceptData(concepts, steps_per_concept=steps, concepts_per_batch=concepts_at_once or "auto")
    clock = Clock()
    trainer = MaceTrainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(ConceptErasure(pretrained, lr=1e-3), datamodule=data)
    return len(concepts) * steps / (clock.ended - clock.started)


def reference(pretrained: str, concept: dict[str, str], steps: int) -> float:
    """Samples per second of the plain form."""
    pipeline = load_pipeline(pretrained)
    data = ConceptData([concept])
    images, masks = data.load(data.concepts[0], image_size(pipeline))
    positions = [attended_positions(pipeline.tokenizer, t, concept["target"]) for t in data.templates[0]]
    prompts = [t.replace("{}", concept["target"]) for t in data.templates[0]]
    training = PlainTraining(pipeline, images, masks, prompts, positions)
    training.step(0)
    started = time.perf_counter()
    for i in range(steps):
        training.step(i)
    return steps / (time.perf_counter() - started)


def benchmark(
    pretrained: str = "checkpoints/emoji",
    concepts: int = 16,
    steps: int = 50,
    reference_steps: int = 50,
    rounds: int = 3,
    concepts_at_once: int | None = None,
    threads: int | None = None,
) -> float:
    """Print samples per second and their ratio.

    Args:
        pretrained: the pipeline.
        concepts: how many are trained.
        steps: of each concept, ours.
        reference_steps: of one concept, the reference's.
        rounds: how often the two take turns; the table shows medians.
        concepts_at_once: concepts at once; what the memory holds when left out.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    timings: dict[str, list[float]] = {"ours": [], "reference": []}
    with tempfile.TemporaryDirectory() as temporary:
        chosen = made_up(Path(temporary), concepts, image_size(load_pipeline(pretrained)))
        for _ in range(rounds):
            timings["reference"].append(reference(pretrained, chosen[0], reference_steps))
            timings["ours"].append(ours(pretrained, chosen, steps, concepts_at_once))
    ratio = statistics.median(a / b for a, b in zip(timings["ours"], timings["reference"], strict=True))
    medians = {name: statistics.median(values) for name, values in timings.items()}
    rows = [["reference", f"{medians['reference']:.2f}", "1.00"], ["ours", f"{medians['ours']:.2f}", f"{ratio:.2f}"]]
    show_table(f"stage 2 of {concepts} concepts, {steps} steps each", ["form", "samples/s", "ratio"], rows)
    return ratio


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
