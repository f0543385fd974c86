"""Finished runs to be exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from support.exports import base
from support.finished import finished_run
from transformers import CLIPConfig


@pytest.fixture(scope="module")
def run(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("export") / "run", toy_pipeline)


@pytest.fixture(scope="module")
def half_base(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy in float16, its UNet in shards, with a safety checker, a licence and a card."""
    folder = tmp_path_factory.mktemp("half") / "base"
    base(toy_pipeline, dtype=torch.float16).save_pretrained(folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_pretrained(toy_pipeline, subfolder="unet", dtype=torch.float16).save_pretrained(
        folder / "unet", max_shard_size="300KB"
    )
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**small, "image_size": 8, "patch_size": 8}
    StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "safety_checker"
    )
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "_name_or_path": "somebody/sd"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def half_run(half_base: Path) -> Path:
    return finished_run(half_base.parent / "run", half_base)
