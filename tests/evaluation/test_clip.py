"""A CLIP model that judges images is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mace_pl.errors import UserError
from mace_pl.evaluation.clip import ClipEncoder


def test_a_model_without_part_of_its_weights_is_refused(toy_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_clip, tmp_path / "clip"))
    if not (folder / "tokenizer_config.json").is_file():
        shutil.copytree(toy_clip.parent / "tokenizer", tmp_path / "tokenizer")
    assert ClipEncoder(str(folder)).text(["a ship"]).isfinite().all()
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.classifier=.* lacks weights .*: visual_projection\.weight"):
        ClipEncoder(str(folder))
