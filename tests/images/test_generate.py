"""Images are generated in batches that span concepts, and depend on their own seeds alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from support.runs import CONCEPTS, checksums
from support.tolerances import OTHER_IMAGE, above, same_images, same_masks

from mace_pl.data.concepts import ConceptData
from mace_pl.images.files import read_images
from mace_pl.images.generate import ImageRequest, generate_concepts, otsu
from mace_pl.images.prepare import prepare_images
from mace_pl.models.pipeline import load_pipeline
from mace_pl.training.trainer import Ranks

KINDS = [("ship", "object", "attention"), ("painter", "style", "none"), ("dog", "object", "attention")]
KINDS += [("house", "object", "none")]


def requests(count: int = 3) -> list[ImageRequest]:
    return [ImageRequest(name, kind, count, 2, 5.0, 7, mask) for name, kind, mask in KINDS]


def pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in images])).int()


def test_an_image_does_not_depend_on_its_batch(toy_pipeline: Path) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    alone = {}
    for request in requests():
        for found, images, masks in generate_concepts(pipeline, [request], 1):
            alone[found.target] = pixels(images), masks
    sizes: list[int] = []
    together = {}
    for request, images, masks in generate_concepts(pipeline, requests(), 4, sizes.append):
        together[request.target] = pixels(images), masks
    assert sizes == [4, 2, 4, 2]  # both sorts, across concepts
    assert together.keys() == alone.keys() == {name for name, _, _ in KINDS}
    for name, (expected, masks) in alone.items():
        found, found_masks = together[name]
        same_images(found, expected)
        assert (masks is None) == (found_masks is None) == (name in ("painter", "house"))
        if masks is not None and found_masks is not None:
            assert masks.shape == (3, 16, 16)
            same_masks(found_masks, masks)
    other = {n: p for n, (p, _) in alone.items()}
    above((other["ship"] - other["dog"]).abs().max(), OTHER_IMAGE)
    above((other["ship"][0] - other["ship"][1]).abs().max(), OTHER_IMAGE)


def test_a_concept_comes_as_soon_as_its_last_image_is_generated(toy_pipeline: Path) -> None:
    sizes: list[int] = []
    order = [
        (request.target, sum(sizes))
        for request, *_ in generate_concepts(load_pipeline(str(toy_pipeline)), requests(), 2, sizes.append)
    ]
    # six masked rows in batches of two: the third image of the ship is in the second batch, whose end is not counted
    assert order == [("ship", 2), ("dog", 4), ("painter", 8), ("house", 10)]


def prepare(
    pipeline: Path, folder: Path, rank: int = 0, world: int = 1, seed: int = 7, mask: str = "attention", **more: Any
) -> Any:
    """The share of one rank. Returns the pipeline as it is left."""
    settings = {"images_per_concept": 2, "image_steps": 1, "images_per_batch": 3, "mask": mask} | more
    data = ConceptData(CONCEPTS, pictures=str(folder), **settings)
    loaded = load_pipeline(str(pipeline))
    ranks = Ranks(rank, world, SingleDeviceStrategy(torch.device("cpu")))
    prepare_images(loaded, data, ranks, seed, {"unet": "u", "text_encoder": "t"})
    return loaded


def made(folder: Path) -> dict[str, int]:
    """When each concept was generated."""
    return {f.parent.name: f.stat().st_mtime_ns for f in folder.glob("*/settings.json")}


def test_only_what_is_missing_is_generated(
    toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(toy_pipeline, tmp_path)
    first, content = made(tmp_path), checksums(tmp_path)
    assert first.keys() == {"ship", "painter", "dog"}
    shutil.rmtree(tmp_path / "dog")
    prepare(toy_pipeline, tmp_path)
    second = made(tmp_path)
    assert second["dog"] > first["dog"]
    assert {n: t for n, t in second.items() if n != "dog"} == {n: t for n, t in first.items() if n != "dog"}
    assert checksums(tmp_path).keys() == content.keys()
    assert "Not used again" not in capsys.readouterr().out
    prepare(toy_pipeline, tmp_path, seed=8)
    assert all(made(tmp_path)[name] > second[name] for name in second)
    said = capsys.readouterr().out.replace("\n", "")
    assert all(f"{tmp_path / name}: other seed." in said for name in second)


def test_another_scheduler_generates_other_images(toy_pipeline: Path, tmp_path: Path) -> None:
    def generated(scheduler: str | None) -> tuple[torch.Tensor, dict[str, int]]:
        left = prepare(toy_pipeline, tmp_path, mask="none", image_steps=3, image_scheduler=scheduler)
        assert type(left.scheduler) is DDIMScheduler  # training uses the model's own
        return pixels(read_images(sorted(tmp_path.glob("ship/images/*")), "images")), made(tmp_path)

    own, first = generated(None)
    assert generated("DDIMScheduler")[1] == first  # the model's own, by its name
    other, second = generated("EulerAncestralDiscreteScheduler")
    assert all(second[name] > first[name] for name in first)
    above((other - own).abs().max(), OTHER_IMAGE)
    assert json.loads((tmp_path / "ship/settings.json").read_text())["scheduler"] == "EulerAncestralDiscreteScheduler"
    pipeline = load_pipeline(str(toy_pipeline))
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    seed = ImageRequest("ship", "object", 1, 3, 7.5, 7, "none").seeds()[0]
    plain = pipeline("a photo of a ship", num_inference_steps=3, generator=torch.Generator().manual_seed(seed)).images
    same_images(other[:1], pixels(plain))


@pytest.mark.parametrize("name", ["Magic", "DPMSolverSDEScheduler"])  # the latter's noise depends on the batch
def test_a_scheduler_that_cannot_generate_is_refused(toy_pipeline: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.image_scheduler={name} does not go .* DDIMScheduler, DDPMSch"):
        prepare(toy_pipeline, tmp_path, image_scheduler=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_concepts(toy_pipeline: Path, tmp_path: Path, world: int) -> None:
    shares = []
    for rank in range(world):  # without masks, which a rank may look at for another
        prepare(toy_pipeline, tmp_path / str(rank), rank, world, mask="none")
        shares.append(set(made(tmp_path / str(rank))))
    assert sorted(name for share in shares for name in share) == ["dog", "painter", "ship"]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_seed_of_an_image_is_its_own() -> None:
    one = requests()[0]
    assert one.seeds()[:2] == replace(one, count=2).seeds()
    assert not set(one.seeds()) & set(replace(one, target="dog").seeds())
    assert not set(one.seeds()) & set(replace(one, seed=8).seeds())


def test_otsu_finds_the_split_of_greatest_variance_between_two_classes() -> None:
    values = torch.tensor([0.1, 0.4, 0.2, 0.35, 0.9, 0.7, 0.15, 0.8], dtype=torch.float64)

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return float(len(low) * len(high) * (high.mean() - low.mean()) ** 2)

    found = otsu(values)
    ordered = values.sort().values
    candidates = [float(a + b) / 2 for a, b in zip(ordered[:-1], ordered[1:], strict=True)]
    assert found in candidates and between(found) == max(between(c) for c in candidates)
    assert otsu(values.flip(0)) == found  # whatever their order
