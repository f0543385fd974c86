"""Whether presets fit: ``fit`` with the memory of a smaller card, at the shapes of each family with random weights.

Run it on a GPU as ``python benchmarks/cards.py``. All memory that the card in question would not have is taken
beforehand, so that ``fit`` finds no more than that: it generates images, trains four concepts for a few steps, and
fuses. It needs up to 7 GB of disk for each family in the temporary folder, and the bundled model's tokenizer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import show_table
from jsonargparse import auto_cli
from preset_memory import FAMILIES
from rehearsal import GIB, save

from mace_pl.files.artifacts import write_json

ERASE = Path(__file__).resolve().parents[1] / "erase.py"
TARGETS = ("ship", "bird", "automobile", "cat")
CARDS = ("sd15:8", "sd15:12", "sd15:16", "sd21:8", "sd21:12", "sd21:16", "sd21:24", "sdxl:24")
EVERY = 0.02  # seconds between two looks at the memory


class Card:
    """A card of which all but ``size`` GiB are taken; on a CPU nothing is.

    Attributes:
        most: bytes in use at the highest, beside what is taken.
    """

    def __init__(self, size: float) -> None:
        self.size, self.most, self.left = size, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.taken: torch.Tensor | None = None

    def __enter__(self) -> Card:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            self.taken = torch.empty(int(free - self.size * GIB), dtype=torch.uint8, device="cuda")
            self.thread.start()
        return self

    def watch(self) -> None:
        """Look until the block is left."""
        while not self.left.wait(EVERY):
            self.most = max(self.most, int(self.size * GIB) - torch.cuda.mem_get_info()[0])

    def __exit__(self, *_: object) -> None:
        self.left.set()
        if self.thread.is_alive():
            self.thread.join()
        self.taken = None


def words(base: Path, output: Path, preset: str, steps: int) -> list[str]:
    """``fit`` in a process of its own; images of a model of random weights show nothing, but take what others take."""
    concepts = [{"target": target, "anchor": "ground"} for target in TARGETS]
    given = {
        "model.pretrained": str(base),
        "model.domain_names": json.dumps(["house", "tree"]),
        "data.concepts": json.dumps(concepts),
        "data.steps_per_concept": str(steps),
        "data.image_steps": "2",
        "output_dir": str(output),
        "preset": preset,
        "save_pipeline": "false",
        "kept": "[]",
    }
    return [
        sys.executable,
        str(ERASE),
        "fit",
        *(word for name, value in given.items() for word in (f"--{name}", value)),
    ]


def tried(place: Path, preset: str, steps: int, toy: bool) -> dict[str, Any]:
    """One preset: whether it ran, seconds, GiB in use, and the lines that it said of its memory."""
    family, _, size = preset.partition(":")
    named = f"tiny:{size}" if toy else preset
    output = place / preset.replace(":", "_")
    with Card(float(size)) as card:
        started = time.perf_counter()
        done = subprocess.run(words(place / family, output, named, steps), capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if line.startswith(("Preset", "Memory", "Concepts at"))
    ]
    failed = [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()[-12:]
    found = {"preset": preset, "code": done.returncode, "seconds": seconds, "gib": card.most / GIB, "said": said}
    return found | {"failed": failed}


def main(
    cards: list[str] = list(CARDS),  # noqa: B006 - read only; jsonargparse shows it
    steps: int = 3,
    folder: str | None = None,
    output: str | None = None,
    toy: bool = False,
) -> None:
    """Print whether each preset runs on its card, and what it takes there.

    Args:
        cards: presets with the size of a card, as ``sd15:8``.
        steps: of each concept.
        folder: where the random pipelines and the runs are written; a temporary folder when left out.
        output: JSON file for the figures.
        toy: a few channels in place of the real ones, to try the script itself.
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        for family in dict.fromkeys(card.partition(":")[0] for card in cards):
            torch.manual_seed(0)
            save(place / family, FAMILIES[family], toy)
        for card in cards:
            rows.append(tried(place, card, steps, toy))
            print("\n".join([f"{card}:", *rows[-1]["said"], *rows[-1]["failed"]]), flush=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    shown = [[r["preset"], "yes" if r["code"] == 0 else "NO", f"{r['gib']:.1f}", f"{r['seconds']:.0f}"] for r in rows]
    show_table(f"fit with the memory of a card, on {gpu}", ["preset", "runs", "GiB in use", "seconds"], shown)
    if output is not None:
        write_json(Path(output), {"gpu": gpu, "steps": steps, "cards": rows})


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
