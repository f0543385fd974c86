"""Makes every toy model of the tests in a folder: ``python toy_worker.py FOLDER``, in a process of its own."""

import sys
from pathlib import Path

import toys
from families import FAMILIES, family
from finished import finished_run
from segmenters import all_three
from transformers import CLIPTokenizer


def make(folder: Path) -> None:
    """With relative paths, for the files of a run name its base model."""
    toy = toys.pipeline(folder / "pipeline")
    toys.clip(folder / "clip", toy)
    for name in FAMILIES:
        family(name, toy).save_pretrained(folder / name)
    finished_run(folder / "run", toy)
    all_three(folder / "segmenters", CLIPTokenizer.from_pretrained(toy / "tokenizer"))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
