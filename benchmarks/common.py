"""What the benchmarks share: made-up concepts, peaks of memory, quiet libraries, tables."""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from lightning.pytorch.utilities import disable_possible_user_warnings
from PIL import Image
from rich.console import Console
from rich.table import Table

from mace_pl.training.memory import Peak, resident

__all__ = ["Peak", "alone", "machine", "made_up", "quiet", "resident", "show_table"]
IMAGES = 8  # of each concept, as the method has them
#: imported once for all processes: they must be found without the folder of this file
LIBRARIES = [
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "lightning.pytorch",
    "peft",
    "torchmetrics",
]


def quiet() -> None:
    """Leave only what a benchmark prints."""
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def made_up(folder: Path, count: int, size: tuple[int, int]) -> list[dict[str, str]]:
    """Concepts with images of noise (height, width) and masks of a square: their content costs no time."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    for i in range(IMAGES):
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask.numpy()).save(folder / "masks" / f"{i}.png")
    shared = {"kind": "object", "anchor": "house", "images": str(folder / "images"), "masks": str(folder / "masks")}
    return [{"target": f"ship {i}", **shared} for i in range(count)]


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own, so that no other's memory counts."""
    context = multiprocessing.get_context("forkserver")  # one process imports the libraries, and is forked for each
    context.set_forkserver_preload(LIBRARIES)
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # a killed one is an error
        return pool.submit(_quietly, torch.get_num_threads(), measure, *arguments).result()


def _quietly(threads: int, measure: Callable[..., Any], *arguments: Any) -> Any:
    quiet()
    torch.set_num_threads(threads)
    return measure(*arguments)


def machine() -> str:
    """Processor, cores, torch: what a figure came from."""
    info = Path("/proc/cpuinfo")
    models = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.is_file() else []
    name = models[0].split(":")[1].strip() if models else platform.processor()
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the machine beneath it."""
    table = Table(title=title, caption=machine())
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
