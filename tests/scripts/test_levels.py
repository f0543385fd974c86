"""What the levels ask of a model, and how shares are counted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from mace_pl.files.paths import resolve
from mace_pl.pretraining.captions import read_rows
from mace_pl.pretraining.sentences import read_grammar

ROOT = Path(__file__).resolve().parents[2]
FOLDER = resolve("mace_pl/pretraining/emoji")
NAMES = sorted({row["concept"] for row in read_rows(FOLDER / "metadata.jsonl")})


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it imports others from its folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield __import__("levels")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        for name in ("levels", "compared"):
            sys.modules.pop(name, None)


class Reds(torch.nn.Module):
    """Red images are ships, other colours dogs, and black shows nothing."""

    def forward(self, images: list[Image.Image]) -> torch.Tensor:
        colours = [image.getpixel((0, 0)) for image in images]
        return torch.tensor([[float(c[0] > 0), float(c[0] == 0 and any(c))] for c in colours])


def test_every_level_asks_what_it_says(script: ModuleType) -> None:
    asked = script.levels(FOLDER, ["noto", "Velmora"], NAMES, 2)
    assert set(Counter(name for _, name in asked["names"]).values()) == {2} and len(asked["names"]) == 2 * len(NAMES)
    assert len(asked["ten"]) == 20 and len(asked["names in styles"]) == 20
    assert {name for _, name in asked["sentences"]} == set(NAMES)
    assert all(name in prompt for prompt, name in asked["sentences"])
    grammar = read_grammar(FOLDER)
    assert all(prompt in grammar.descriptions[name]["held_out"] for prompt, name in asked["descriptions"])
    assert asked == script.levels(FOLDER, ["noto", "Velmora"], NAMES, 2)


def test_shares_count_what_is_right_and_what_is_nothing(script: ModuleType) -> None:
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "red", "blue", "black")]
    assert script.share(Reds(), images, ["ship", "dog", "dog", "ship"], ["ship", "dog"]) == {"seen": 0.5, "empty": 0.25}
