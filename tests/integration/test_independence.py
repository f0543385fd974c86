"""What is learnt does not depend on what is trained at once, on the order of concepts, or on the number of ranks."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.forks import ranks
from support.runs import SCRIPT, config, nodes, train, user_images
from support.tolerances import REGENERATED, RUN_FACTORS, RUN_MOVED, RUN_WEIGHTS, Tolerance, above, close, same_images
from torch import Tensor

from mace_pl.images.files import list_images, read_images
from mace_pl.modules.concept_erasure import ConceptErasure

NAMES = ["ship", "painter", "dog", "cat", "bird", "house", "street", "person"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--save_pipeline", "false", "--report_seeds", "0"]


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Eight of mixed kinds: objects with attention masks, styles, images and masks of the user's, and without masks."""
    own = user_images(tmp_path_factory.mktemp("own"), [16, 24], [(16, 255), (24, 255)])
    kinds = ["object", "style", "object", "object", "style", "object", "object", "object"]
    found = [{"target": n, "anchor": "ground", "kind": k} for n, k in zip(NAMES, kinds, strict=True)]
    found[5] |= {"images": own["images"], "masks": own["masks"]}
    found[6] |= {"masks": "none"}
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first run generates, all runs learn from."""
    return tmp_path_factory.mktemp("run") / "pictures"


@pytest.fixture(scope="module")
def eight(toy_pipeline: Path, concepts: list[dict[str, str]], images: Path) -> ConceptErasure:
    """The run that the others are compared with: all at once."""
    return train(toy_pipeline, images, concepts, {"concepts_per_batch": 8})


def weights(module: ConceptErasure) -> dict[str, Tensor]:
    return {f"{name}.weight": module.unet.get_submodule(name).weight.detach() for name in module.refined.original}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: Tolerance = RUN_WEIGHTS) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name], tolerance)


def assert_same_run(found: ConceptErasure, expected: ConceptErasure) -> None:
    assert_same(weights(found), weights(expected))
    for target, layers in expected.trained.factors.items():
        for name, pair in layers.items():
            for one, other in zip(found.trained.factors[target][name], pair, strict=True):
                close(one, other, RUN_FACTORS)


def test_eight_concepts_change_the_weights_and_each_its_own_way(eight: ConceptErasure) -> None:
    change = max(float((weights(eight)[f"{n}.weight"] - w).abs().max()) for n, w in eight.refined.original.items())
    above(change, RUN_MOVED)
    learnt = [torch.cat([(B @ A).flatten() for A, B in eight.trained.factors[name].values()]) for name in NAMES]
    for i, one in enumerate(learnt):
        for other in learnt[:i]:
            above((one - other).abs().max(), RUN_MOVED)


@pytest.mark.parametrize("count", [1, 3])
def test_groups_of_any_size_learn_the_same(
    eight: ConceptErasure, toy_pipeline: Path, concepts: list[dict[str, str]], images: Path, count: int
) -> None:
    assert_same_run(train(toy_pipeline, images, concepts, {"concepts_per_batch": count}), eight)


def test_images_in_other_batches_teach_the_same(
    eight: ConceptErasure, toy_pipeline: Path, concepts: list[dict[str, str]], tmp_path: Path
) -> None:
    """Images are generated anew, in batches that begin and end within concepts."""
    data = {"concepts_per_batch": 8, "images_per_batch": 3}
    found = train(toy_pipeline, tmp_path / "pictures", concepts, data)
    assert_same(weights(found), weights(eight), REGENERATED)


def test_any_order_learns_the_same(
    eight: ConceptErasure, toy_pipeline: Path, concepts: list[dict[str, str]], images: Path
) -> None:
    shuffled = [concepts[i] for i in (6, 1, 7, 0, 3, 5, 2, 4)]
    assert_same_run(train(toy_pipeline, images, shuffled, {"concepts_per_batch": 3}), eight)


def test_two_ranks_learn_the_same(
    eight: ConceptErasure, toy_pipeline: Path, concepts: list[dict[str, str]], images: Path, tmp_path: Path
) -> None:
    args = config(tmp_path, toy_pipeline, "two", concepts, concepts_per_batch=3, pictures=str(images))
    for done in ranks(SCRIPT, [*args, *TWO]):
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(tmp_path / "two" / "refined.safetensors"), weights(eight))


def test_two_nodes_learn_the_same(
    eight: ConceptErasure, toy_pipeline: Path, concepts: list[dict[str, str]], images: Path, tmp_path: Path
) -> None:
    args = config(tmp_path, toy_pipeline, "nodes", concepts, concepts_per_batch=3, pictures=str(images))
    for done in [process.wait() for process in nodes([*args, "--report_seeds", "0"], 2)]:
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(tmp_path / "nodes" / "refined.safetensors"), weights(eight))


def test_two_ranks_share_the_images_of_one_concept(toy_pipeline: Path, tmp_path: Path) -> None:
    """The images of a single rank, and what it learns."""
    concepts = [{"target": "ship", "anchor": "ground"}]
    alone = train(toy_pipeline, tmp_path / "alone", concepts, {"images_per_concept": 3})
    args = config(tmp_path, toy_pipeline, "two", concepts, images_per_concept=3)
    for done in ranks(SCRIPT, [*args, *TWO]):
        assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("images", "masks"):
        one, two = (
            read_images(list_images(tmp_path / run / "ship" / kind, kind), kind) for run in ("alone", "pictures")
        )
        assert len(one) == len(two) == 3
        same_images(one, two)
    assert_same(load_file(tmp_path / "two" / "refined.safetensors"), weights(alone), REGENERATED)


def test_as_many_as_fit_learn_the_same(
    eight: ConceptErasure,
    toy_pipeline: Path,
    concepts: list[dict[str, str]],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``auto``, on a machine with memory for four concepts; the log says what was chosen and why."""
    said = r"Concepts at once: (\d+) \(one takes ([\d,.]+) MB, free: ([\d,.]+) MB\)"
    with caplog.at_level(logging.INFO, "mace_pl"):
        train(toy_pipeline, images, concepts[:1], {"concepts_per_batch": "auto", "steps_per_concept": 1})
        cost = float(re.findall(said, caplog.text)[-1][1].replace(",", "")) * 2**20
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(6.5 * cost)))
        found = train(toy_pipeline, images, concepts, {"concepts_per_batch": "auto"})
    assert found.concepts_at_once == 4 == int(re.findall(said, caplog.text)[-1][0])
    assert_same_run(found, eight)
