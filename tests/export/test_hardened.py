"""Exports of a hardened run hold the edit and the hardening, on layers that the edit alone does not touch too."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from support.exports import export
from support.families import family
from support.finished import finished_run, noise_of
from support.seeds import seeded
from support.tolerances import EDITED_PASS, FLOAT32_EDIT, MOVED, above, close

from mace_pl.files.artifacts import read_metadata
from mace_pl.methods.edit import Edit, Factors
from mace_pl.models.backbone import backbone_of
from mace_pl.run import Run

RANK = 2
CLASSES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", params=list(CLASSES))
def made(request: pytest.FixtureRequest, toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Class, base folder, a run whose edit is of rank one with a hardening of random values, and all its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = family(request.param, toy_pipeline)
    pipeline.save_pretrained(folder / "base")
    run = finished_run(folder / "run", folder / "base")
    generator, factors, backbone = torch.Generator().manual_seed(seeded(8)), Factors(), backbone_of(pipeline)
    width = next(iter(backbone.key_values().values())).shape[1]
    along, across = (torch.randn(width, generator=generator) for _ in range(2))
    made = read_metadata(run / "edit.safetensors", "run")
    named = {name: made[name] for name in ("pretrained", "concepts")}
    Edit(torch.eye(width) + along[:, None] * across / width).save(run / "edit.safetensors", named)
    R = torch.eye(width).double() + (along[:, None] * across / width).double()
    weights = {n: W.double() @ R for n, W in backbone.key_values().items()}
    for name, W in backbone.weights_of(backbone.attention_layers("all")).items():
        A, B = (0.1 * torch.randn(shape, generator=generator) for shape in ((RANK, W.shape[1]), (len(W), RANK)))
        factors[name] = (A, B)
        weights[name] = weights.get(name, W).double() + B.double() @ A.double()
    Run.load(run).save_hardening(factors, {})
    return CLASSES[request.param], folder / "base", run, weights


def test_the_single_file_holds_it(made: Any, tmp_path: Path) -> None:
    kind, base, run, weights = made
    file = export(run, tmp_path / "model.safetensors", "--format", "single_file")
    loaded = kind.from_single_file(str(file), config=str(base), local_files_only=True).unet.state_dict()
    original = kind.from_pretrained(base).unet.state_dict()
    for name, value in original.items():
        layer = name.removesuffix(".weight")
        close(loaded[name].double(), weights[layer] if layer in weights else value.double(), FLOAT32_EDIT)
        if layer in weights:
            above((loaded[name] - value).abs().max(), MOVED)


def test_the_lora_for_other_programs_holds_it_and_says_what_it_lost(made: Any, tmp_path: Path) -> None:
    kind, base, run, weights = made
    whole = export(run, tmp_path / "whole", "--format", "lora", "--rank", str(RANK + 1))
    loaded, expected = (kind.from_pretrained(base) for _ in range(2))
    backbone_of(expected).set_key_values(weights)
    loaded.load_lora_weights(whole)
    close(noise_of(loaded.unet), noise_of(expected.unet), EDITED_PASS)
    (file,) = whole.glob("*.safetensors")
    layers = {name.split(".")[0] for name in load_file(file)}
    assert len(layers) == len(weights) and sum("attn1" in layer for layer in layers) == len(layers) // 2
    cut = export(run, tmp_path / "cut", "--format", "lora", "--rank", "1")
    error = max(float(found) for found in re.findall(r"(\d+(?:\.\d+)?) ?%", (cut / "README.md").read_text("utf-8")))
    assert error > 10  # of rank two, one is left out
