"""Makes every toy model of the tests in a folder: ``python toy_worker.py FOLDER``, in a process of its own."""

import sys
from pathlib import Path

from transformers import CLIPTokenizer

from support import toys
from support.families import FAMILIES, family
from support.finished import finished_run
from support.segmenters import all_three


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
