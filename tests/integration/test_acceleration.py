"""Checkpointing, mixed precision and compilation change what a run costs, not what it learns.

Losses and changes of the weights are compared with a plain float32 run of the same six steps.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from support.runs import CONCEPTS, train
from support.tolerances import (
    BFLOAT16_RUN,
    FLOAT16_RUN,
    LOSS_CHANGES,
    MIXED_LOSSES,
    PRODUCTS,
    RUN_LOSSES,
    RUN_WEIGHTS,
    Tolerance,
    above,
    close,
    near,
)
from torch import Tensor

from mace_pl.modules.concept_erasure import ConceptErasure

DATA = {"steps_per_concept": 6}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def plain(toy_pipeline: Path, images: Path) -> ConceptErasure:
    return train(toy_pipeline, images, data=DATA)


@pytest.fixture(scope="module")
def usual(toy_pipeline: Path, images: Path) -> ConceptErasure:
    """By the kernels that a compiled run has: frozen layers are torch's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mace_pl.modules.concept_erasure.frozen_layers", nullcontext)
        return train(toy_pipeline, images, data=DATA)


def losses(module: ConceptErasure) -> Tensor:
    """[concepts, steps]."""
    return torch.tensor([module.trained.losses[c["target"]] for c in CONCEPTS])


def change(module: ConceptErasure) -> Tensor:
    """What the run did to the keys and values, flat."""
    return torch.cat(
        [(module.unet.get_submodule(n).weight - w).flatten() for n, w in module.refined.original.items()]
    ).detach()


def learnt(module: ConceptErasure) -> Tensor:
    """B A of every concept and layer, flat."""
    return torch.cat([(B @ A).flatten() for layers in module.trained.factors.values() for A, B in layers.values()])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_mixed(module: ConceptErasure, plain: ConceptErasure, tolerance: Tolerance) -> None:
    """A run in a narrower type learns the same."""
    assert not torch.equal(losses(module), losses(plain))  # equal losses would mean float32
    near(losses(module), losses(plain), MIXED_LOSSES)
    near(learnt(module), learnt(plain), tolerance)
    near(change(module), change(plain), tolerance)


def test_the_plain_run_learns(plain: ConceptErasure) -> None:
    first, *later = losses(plain).T
    above(max(relative(step, first) for step in later), LOSS_CHANGES)
    above(learnt(plain).norm(), PRODUCTS)


def test_checkpointing_gives_the_same_weights(plain: ConceptErasure, images: Path, toy_pipeline: Path) -> None:
    module = train(toy_pipeline, images, data=DATA, gradient_checkpointing=True)
    close(losses(module), losses(plain), RUN_LOSSES)
    close(change(module), change(plain), RUN_WEIGHTS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_learns_what_float32_learns(
    plain: ConceptErasure, images: Path, toy_pipeline: Path, checkpointing: bool
) -> None:
    trainer = {"precision": "bf16-mixed"}
    module = train(toy_pipeline, images, data=DATA, trainer=trainer, gradient_checkpointing=checkpointing)
    assert_mixed(module, plain, BFLOAT16_RUN)


def test_float16_takes_the_loss_scale_out_before_it_clips(images: Path, toy_pipeline: Path) -> None:
    """The Trainer has no float16 on CPU, so its plugin is made here; a scale of 1024 does not overflow.

    Every gradient is clipped, to a size that would vanish beside AdamW's eps if the scale were taken out afterwards.
    """
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    plain = train(toy_pipeline, images, data=DATA, gradient_clip=1e-4)
    module = train(toy_pipeline, images, data=DATA, trainer={"plugins": plugin}, gradient_clip=1e-4)
    assert_mixed(module, plain, FLOAT16_RUN)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_captured_blocks_give_the_same_weights(
    usual: ConceptErasure, images: Path, toy_pipeline: Path, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are captured and differentiated as for any backend; generating code for each takes minutes on CPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()  # what another test has captured would be used again
    torch._dynamo.utils.counters.clear()
    module = train(toy_pipeline, images, data=DATA, compile=True, gradient_checkpointing=checkpointing)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 5
    assert not torch._dynamo.utils.counters["graph_break"]
    close(losses(module), losses(usual), RUN_LOSSES)
    close(change(module), change(usual), RUN_WEIGHTS)
    assert all("forward" not in vars(part) for part in module.unet.modules())  # reports are generated without it
