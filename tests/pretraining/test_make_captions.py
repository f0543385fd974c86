"""The prior captions of the bundled model: seeded, even over the concepts, of every kind that it was trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve
from mace_pl.pretraining.make_captions import main, make_captions
from mace_pl.pretraining.sprites import SpriteImages
from mace_pl.pretraining.styles import MANNERS

ROWS = [
    {"concept": "ship", "style": "noto", "kind": "object", "synonyms": ["boat"]},
    {"concept": "elf", "style": "blob", "kind": "character"},
]


def folder(place: Path) -> str:
    (place / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": "a.png", **row}) for row in ROWS))
    return str(place)


def test_they_are_seeded_and_even(tmp_path: Path) -> None:
    def made(seed: int) -> list[str]:
        return make_captions(SpriteImages(folder(tmp_path), images=200, seed=seed))

    assert made(1) == made(1) != made(2)
    assert all("ship" in c or "boat" in c for c in made(1)[1::2])
    assert all("elf" in c or "person" in c for c in made(1)[::2])


def test_manners_are_named_and_sentences_want_a_grammar(tmp_path: Path) -> None:
    data = SpriteImages(images=94, manners=1.0, sentences=0.5, descriptions=0.5, seed=3)
    assert all(any(manner in caption for manner in MANNERS) for caption in make_captions(data))
    with pytest.raises(UserError, match="sentences.json"):
        make_captions(SpriteImages(folder(tmp_path), images=2, sentences=0.5))


def test_the_shipped_ones_are_made_by_the_command(tmp_path: Path) -> None:
    main(tmp_path / "captions.json")
    made: Any = json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))
    assert made == json.loads(resolve("mace_pl/pretraining/emoji/captions.json").read_text(encoding="utf-8"))
