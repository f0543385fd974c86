"""How fast statistics are summed, beside the text encoder alone and beside the textbook form.

Run it as ``python benchmarks/caption_statistics.py --captions captions_val2014.json``: some minutes on two CPU cores.
The text encoder has the size of CLIP ViT-L/14's and random weights, the 32 matrices have the shapes of SD 1.4's. All
three take turns on the same captions in one process; the peaks of memory are measured in a process of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import PNDMScheduler, StableDiffusionPipeline
from jsonargparse import auto_cli
from lightning.pytorch.utilities import disable_possible_user_warnings
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mace_pl.data.caption_files import CaptionSource
from mace_pl.data.captions import Captions
from mace_pl.methods.gram_statistics import load_statistics
from mace_pl.models.text_encoding import encode_prompts
from mace_pl.modules.caption_statistics import PromptStatistics
from mace_pl.pretraining.tokenizer import train_tokenizer
from mace_pl.training.trainer import MaceTrainer

OUTPUTS = [320] * 10 + [640] * 10 + [1280] * 12  # rows of the keys and values of SD 1.4's cross-attentions
TRIED = 64  # captions on which batch sizes are compared


def save_pipeline(folder: Path, captions: Sequence[str], width: int, layers: int) -> None:
    """A pipeline of a text encoder with random weights, without networks."""
    tokenizer = train_tokenizer(captions[:2000], 1000)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=None,
        unet=None,
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(config),
        scheduler=PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


class Textbook:
    """W_i P and P for each of 32 matrices, in float32: matrices of one shape are stacked and multiplied together.

    Args:
        width: D, the width of the text embeddings.
    """

    def __init__(self, width: int) -> None:
        self.matrices = [torch.randn(len(list(group)), rows, width) for rows, group in itertools.groupby(OUTPUTS)]
        self.mat1: list[Tensor] = []
        self.mat2: list[Tensor] = []

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings [N, T, D]: every token through every matrix, then 64 running sums."""
        if not self.mat1:  # memory of the form, not of the model
            self.mat1 = [torch.zeros_like(W_god) for W_god in self.matrices]
            self.mat2 = [torch.zeros(len(W_god), W_god.shape[2], W_god.shape[2]) for W_god in self.matrices]
        e_kd = embeddings.flatten(0, 1)
        for W_god, mat1, mat2 in zip(self.matrices, self.mat1, self.mat2, strict=True):
            values_gko = e_kd @ W_god.transpose(1, 2)
            stacked_gkd = e_kd.expand(len(W_god), -1, -1)
            mat1 += values_gko.transpose(1, 2) @ stacked_gkd
            mat2 += stacked_gkd.transpose(1, 2) @ stacked_gkd


class Contest:
    """The three forms on the same model.

    Args:
        folder: what :func:`save_pipeline` wrote; captions and results go there too.
        width: D.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder = folder
        self.model = PromptStatistics(str(folder), str(folder / "prior.safetensors"), overwrite=True)
        self.textbook = Textbook(width)

    def encoder(self, captions: Sequence[str], batch_size: int) -> None:
        """(a) the text encoder alone, from tokens to embeddings."""
        pipeline = self.model.pipeline
        tokens = pipeline.tokenizer(
            list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        self.started = time.perf_counter()
        with torch.inference_mode():
            for batch in tokens.split(batch_size):
                pipeline.text_encoder(batch)

    def cache(self, captions: Sequence[str], batch_size: int) -> None:
        """(b) the command: captions out of a file, encoded, summed, written."""
        source = self.folder / "captions.jsonl"
        source.write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions), "utf-8")
        trainer = MaceTrainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
        self.started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # no summary for each round
            trainer.cache(self.model, datamodule=Captions(sources=[str(source)], batch_size=batch_size))

    def by_the_book(self, captions: Sequence[str], batch_size: int) -> None:
        """(c) every token through all matrices, 64 running sums."""
        self.started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(captions), batch_size):
                self.textbook.update(encode_prompts(self.model.pipeline, captions[start : start + batch_size]))

    def speed(self, form: Callable[[Sequence[str], int], None], captions: Sequence[str], batch_size: int) -> float:
        """Captions per second."""
        form(captions, batch_size)
        return len(captions) / (time.perf_counter() - self.started)


def resident(name: str) -> float:
    """MB of this process: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak(folder: Path, width: int, form: str, captions: Sequence[str], batch_size: int, threads: int) -> float:
    """Peak memory in MB beyond what lies there once the model (for (c): and its matrices) is loaded."""
    torch.set_num_threads(threads)
    quiet()
    contest = Contest(folder, width)
    if form == "cache":
        del contest.textbook
    ctypes.CDLL(None).malloc_trim(0)  # give back what loading has freed
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    loaded = resident("VmRSS")
    getattr(contest, form)(captions, batch_size)
    return resident("VmHWM") - loaded


def quiet() -> None:
    """Leave only what this program prints."""
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def benchmark(
    captions: str,
    count: int = 768,
    rounds: int = 3,
    batch_sizes: list[int] | None = None,
    width: int = 768,
    layers: int = 12,
    threads: int | None = None,
) -> dict[str, float]:
    """Compare the forms and print captions per second, their ratios, and peaks of memory.

    Args:
        captions: a file of captions as ``--data.sources`` takes it; distinct ones are used.
        count: captions that each form sums, in all rounds together.
        rounds: how often the forms take turns; ratios are medians over the rounds.
        batch_sizes: sizes that are tried; the best one of the encoder alone serves all forms.
        width: width of the text encoder, a multiple of 64.
        layers: its layers.
        threads: threads of torch; its own choice when left out.
    """
    quiet()
    if threads:
        torch.set_num_threads(threads)
    distinct = list(dict.fromkeys(itertools.islice(CaptionSource(captions).captions(), 2 * count + 2000)))[:count]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_pipeline(folder, distinct, width, layers)
        contest = Contest(folder, width)
        forms = {"a": contest.encoder, "b": contest.cache, "c": contest.by_the_book}
        tried = {
            n: contest.speed(contest.encoder, distinct[:TRIED], n) for n in [*(batch_sizes or (8, 16, 32, 64))] * 2
        }
        best = max(tried, key=tried.__getitem__)
        speeds: dict[str, list[float]] = {name: [] for name in forms}
        share = -(-len(distinct) // rounds)
        for turn in range(rounds):
            chosen = distinct[turn * share : (turn + 1) * share]
            for name in [*forms][turn % 3 :] + [*forms][: turn % 3]:
                speeds[name].append(contest.speed(forms[name], chosen, best))
        gram, _ = load_statistics(folder / "prior.safetensors", "prior")
        fresh = multiprocessing.get_context("forkserver")
        fresh.set_forkserver_preload(["mace_pl.modules.caption_statistics"])  # imported once for both
        with fresh.Pool(1, maxtasksperchild=1) as pool:
            arguments = (distinct[: 2 * best], best, torch.get_num_threads())
            memory = {n: pool.apply(peak, (folder, width, n, *arguments)) for n in ("cache", "by_the_book")}
    return report(speeds, memory, best, len(distinct), gram)


def report(speeds: dict[str, list[float]], memory: dict[str, float], best: int, count: int, gram: Tensor) -> Any:
    """Print what was measured."""
    names = {"a": "text encoder alone", "b": "this cache", "c": "textbook form"}
    print(f"{count:,} captions, batches of {best}, {torch.get_num_threads()} threads, width {len(gram)}")
    for name, values in speeds.items():
        print(f"({name}) {names[name]:<20}{statistics.median(values):9.2f} captions/s")
    ratios = {
        f"b/{other}": statistics.median(b / o for b, o in zip(speeds["b"], speeds[other], strict=True))
        for other in ("a", "c")
    }
    print("ratios " + ", ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    print(f"peak memory beyond the weights: (b) {memory['cache']:.0f} MB, (c) {memory['by_the_book']:.0f} MB")
    return ratios | memory


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
