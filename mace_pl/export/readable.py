"""Let a folder of a pipeline be read alike by all versions of diffusers and transformers that people run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mace_pl.files.artifacts import write_json, written_aside
from mace_pl.files.tensors import save_ordered

PREFIX = "text_model."  # of the parameters of a CLIPTextModel


def make_readable(folder: Path) -> None:
    """Edit the parts of transformers in a new folder so that no program has to be told how to load it.

    - A program that asks for no dtype gets float32 in all parts, whatever their files hold: diffusers loads its own
      parts so, transformers 5 those of its own in the dtype of their ``config.json``. A text encoder in float16 and a
      UNet in float32 generate nothing.
    - The parameters of a CLIPTextModel have the names that transformers before 5.6 needs and later ones read too. Under
      other names it leaves the encoder at random, with a warning only.
    - Beside ``tokenizer.json`` lie the ``vocab.json`` and ``merges.txt`` that transformers before 5 needs.

    Args:
        folder: a pipeline, or one part.
    """
    for path in sorted(folder.rglob("config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if "_class_name" in config:  # a part of diffusers
            continue
        whole = _in_float32(config)
        whole |= {} if {"dtype", "torch_dtype"} & whole.keys() else {"dtype": "float32"}
        if whole != config:
            write_json(path, whole)
        if config.get("architectures") == ["CLIPTextModel"]:
            _prefixed(path.parent)
    for path in sorted(folder.rglob("tokenizer.json")):
        _vocabulary(path)


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with float32 wherever it names a dtype, as those of the two sides of CLIP do."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            settings[name] = _in_float32(value)
        else:
            settings[name] = "float32" if name in ("dtype", "torch_dtype") else value
    return settings


def _prefixed(part: Path) -> None:
    """Begin all names of a text encoder's files with the prefix, where they do not."""
    for path in sorted(part.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as opened:
            names, header = list(opened.keys()), opened.metadata()
            if any(name.startswith(PREFIX) for name in names):
                continue
            tensors = {PREFIX + name: opened.get_tensor(name) for name in names}
        with written_aside(path) as aside:
            save_ordered(tensors, aside, header or {"format": "pt"})
    for path in sorted(part.glob("*.safetensors.index*.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        places = index["weight_map"]
        if not any(name.startswith(PREFIX) for name in places):
            write_json(path, index | {"weight_map": {PREFIX + name: file for name, file in places.items()}})


def _vocabulary(path: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` from a ``tokenizer.json`` of byte pairs, where they are not there."""
    model = json.loads(path.read_text(encoding="utf-8")).get("model", {})
    vocabulary, merges = path.with_name("vocab.json"), path.with_name("merges.txt")
    if model.get("type") != "BPE" or (vocabulary.exists() and merges.exists()):
        return
    vocabulary.write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    merges.write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
