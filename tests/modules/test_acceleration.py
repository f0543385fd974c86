"""Checkpointing, mixed precision and compilation change what a run costs, not what it learns."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from runs import CONCEPTS
from torch import Tensor

from mace_pl.data.concepts import ConceptData
from mace_pl.modules.mace import Mace, StageWeights
from mace_pl.trainer import MaceTrainer

STEPS = 6


def train(folder: Path, pipeline: Path, trainer: dict[str, object] | None = None, **model: object) -> Mace:
    """A run of all stages; its module keeps losses, LoRAs and the edited UNet."""
    settings = {"identity": 1.0}
    module = Mace(
        str(pipeline), lr=0.01, refine=StageWeights(**settings), fuse=StageWeights(**settings), **model
    )
    data = ConceptData(
        CONCEPTS, pictures=str(folder), images_per_concept=2, image_steps=2, steps_per_concept=STEPS
    )
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    MaceTrainer(**quiet | {"max_epochs": 1} | (trainer or {})).fit(module, datamodule=data)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def plain(toy_pipeline: Path, pictures: Path) -> Mace:
    return train(pictures, toy_pipeline)


def losses(module: Mace) -> Tensor:
    """[concepts, steps]."""
    return torch.tensor([module.losses[c["target"]] for c in CONCEPTS])


def change(module: Mace) -> Tensor:
    """What the run did to the keys and values, flat."""
    return torch.cat([(module.unet.get_submodule(n).weight - w).flatten() for n, w in module.original.items()]).detach()


def learnt(module: Mace) -> Tensor:
    """B A of every concept and layer, flat."""
    return torch.cat([(B @ A).flatten() for layers in module.factors.values() for A, B in layers.values()])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_plain_run_learns(plain: Mace) -> None:
    first, last = losses(plain)[:, 0], losses(plain)[:, -1]
    assert relative(last, first) > 0.01  # far above the tolerances below
    assert learnt(plain).norm() > 0.05


def test_checkpointing_gives_the_same_weights(plain: Mace, pictures: Path, toy_pipeline: Path) -> None:
    module = train(pictures, toy_pipeline, gradient_checkpointing=True)
    torch.testing.assert_close(losses(module), losses(plain), rtol=1e-6, atol=0)
    torch.testing.assert_close(change(module), change(plain), rtol=0, atol=1e-6)
