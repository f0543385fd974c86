"""Masks of the user's own images that bring none: by networks and by attention, real classes at toy size."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.forks import SCRIPT, ranks
from support.runs import checksums, config, exit_message
from support.seeds import seeded
from support.segmenters import all_three
from support.tolerances import RUN_WEIGHTS, close, same_masks
from torch.nn import functional as F
from transformers import CLIPTokenizer

from mace_pl.cli import erase_main
from mace_pl.concepts.tokens import attended_positions
from mace_pl.data.concepts import ConceptData
from mace_pl.images.generate import mask_from_map
from mace_pl.images.masking import LEVELS, TargetImages, noised_masks, segment_images
from mace_pl.images.segmentation import Search, Segment, find
from mace_pl.methods.lora import stream
from mace_pl.models.cross_attention import observed
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.text_encoding import encode_prompts

CPU = torch.device("cpu")
SIZES = {"one.png": (24, 24), "three.jpg": (24, 24), "two.webp": (40, 16)}  # equal ones apart, in the order of names
FEW = {"images_per_concept": 1, "image_steps": 1, "steps_per_concept": 1}


@pytest.fixture(scope="module")
def networks(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tokenizer = CLIPTokenizer.from_pretrained(toy_pipeline / "tokenizer")
    return all_three(tmp_path_factory.mktemp("segmenters"), tokenizer)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder of images of several sizes and endings."""
    generator = np.random.default_rng(seeded(0))
    (tmp_path / "mine").mkdir()
    for name, (width, height) in SIZES.items():
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "mine" / name)
    return tmp_path / "mine"


def masks_of(folder: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(Image.open(f)) > 127).float() for f in sorted(folder.glob("*.png"))]


def run(folder: Path, pipeline: Path, own: Path, name: str, **data: Any) -> Path:
    """Train on the user's images; returns the folder of what was made for them."""
    concepts = [{"target": "ship", "anchor": "sky", "images": str(own)}]
    before = checksums(own)
    erase_main([*config(folder, pipeline, name, concepts, **FEW, **data), "--save_pipeline", "false"])
    assert checksums(own) == before
    return folder / "pictures/ship/own"


def test_images_of_several_sizes_are_segmented_each_in_its_own(
    networks: dict[str, str], own: Path, tmp_path: Path
) -> None:
    group = TargetImages("ship", "object", sorted(own.iterdir()), tmp_path / "made")
    settings = Segment(**networks, clipseg_threshold=0.5, fallback="none")
    segment_images([group], "clipseg", settings, CPU)
    found = masks_of(tmp_path / "made/masks")
    assert [mask.shape for mask in found] == [(24, 24), (24, 24), (16, 40)]
    for file, mask in zip(group.files, found, strict=True):
        (alone,) = find("clipseg", [Search("ship", [Image.open(file).convert("RGB")])], settings, CPU)
        expected = alone[0] if alone.any() else torch.ones_like(alone[0])
        same_masks(mask, expected)


def test_a_network_masks_the_users_images(
    networks: dict[str, str], toy_pipeline: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = {**networks, "clipseg_threshold": 1e-6}
    made = run(tmp_path, toy_pipeline, own, "first", mask="clipseg", segment=segment)
    assert "ship/own/masks/two.png covers 100% of its image" in capsys.readouterr().err
    assert [mask.shape for mask in masks_of(made / "masks")] == [(24, 24), (24, 24), (16, 40)]
    assert json.loads((made / "masks/settings.json").read_text())["method"] == "clipseg"
    assert Image.open(made / "contact_sheet.png").size == (576, 384)  # enlarged

    def again(name: str) -> int:
        run(tmp_path, toy_pipeline, own, name, mask="clipseg", segment=segment)
        assert "covers 100%" in capsys.readouterr().err
        return (made / "masks/one.png").stat().st_mtime_ns

    first = (made / "masks/one.png").stat().st_mtime_ns
    assert again("second") == first
    Image.new("RGB", (24, 24), "red").save(own / "one.png")
    assert again("third") > first


def test_attention_masks_the_users_images_in_place_of_the_steps_that_generate(
    toy_pipeline: Path, own: Path, tmp_path: Path
) -> None:
    made = run(tmp_path, toy_pipeline, own, "run", image_scheduler="EulerDiscreteScheduler")
    found = masks_of(made / "masks")
    group = TargetImages("ship", "object", sorted(own.iterdir()), made)
    pipeline = load_pipeline(str(toy_pipeline))
    again = noised_masks(pipeline, group, 2024, 7.5)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert 0 < found[0].mean() < 1 and found[2].shape == (16, 40)
    assert not torch.equal(found[0], found[1])
    other = noised_masks(pipeline, group, 1, 7.5)
    assert any(not torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_a_mask_is_the_mean_attention_to_the_noised_image(toy_pipeline: Path, own: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(toy_pipeline))
    (found,) = noised_masks(pipeline, TargetImages("ship", "object", [own / "one.png"], tmp_path), 3, 1.0)
    resized = Image.open(own / "one.png").resize((16, 16), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    positions = torch.tensor(attended_positions(pipeline.tokenizer, "a photo of a {}", "ship"))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), observed(pipeline.unet, lambda _, p: seen.append(p[0].mean(0)[:, positions].sum(-1))):
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        text = encode_prompts(pipeline, ["a photo of a ship"])
        generator = stream(3, "ship", "noise", 0)
        for level in LEVELS:
            t = torch.tensor([int(1000 * level)])
            noise = torch.randn(latents.shape, generator=generator)
            pipeline.unet(pipeline.scheduler.add_noise(latents, noise, t), t, text)
    finest = torch.stack([s for s in seen if len(s) == 64]).mean(0).view(1, 1, 8, 8)
    expected = mask_from_map(F.interpolate(finest, size=(16, 16), mode="bilinear", align_corners=False)[0, 0])
    expected = F.interpolate(expected[None, None], size=(24, 24), mode="nearest")[0, 0]
    same_masks(found, expected)


@pytest.mark.parametrize(
    ("more", "mask", "masked"),
    [
        ({}, "attention", True),
        ({}, "none", False),
        ({"masks": "none"}, "clipseg", False),
        ({"kind": "style"}, "clipseg", False),
        ({"kind": "person"}, "clipseg", True),
    ],
)
def test_the_kind_of_masks_decides(own: Path, tmp_path: Path, more: dict[str, str], mask: str, masked: bool) -> None:
    concept = {"target": "ship", "anchor": "sky", "images": str(own), **more}
    data = ConceptData([concept], pictures=str(tmp_path / "pictures"), mask=mask)
    assert data.masked(data.concepts[0]) is masked
    if not masked:
        _, masks = data.load(data.concepts[0], (16, 16))
        assert bool((masks == 1).all())


def test_images_that_would_share_a_mask_are_refused(
    toy_pipeline: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(own / "one.png", own / "one.bmp")
    concept = {"target": "ship", "anchor": "sky", "images": str(own)}
    message = exit_message(config(tmp_path, toy_pipeline, "out", [concept]), capsys)
    assert "one.bmp and one.png" in message and "Rename one" in message
    assert not (tmp_path / "out").exists()


def test_two_ranks_mask_the_users_images_as_one_does(toy_pipeline: Path, own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "others")
    concepts = [
        {"target": "ship", "anchor": "sky", "images": str(own)},
        {"target": "dog", "anchor": "sky", "images": str(tmp_path / "others")},
    ]
    erase_main([*config(tmp_path, toy_pipeline, "one", concepts, **FEW), "--save_pipeline", "false"])
    alone = {name: masks_of(tmp_path / "pictures" / name / "own/masks") for name in ("ship", "dog")}
    shutil.rmtree(tmp_path / "pictures")
    args = config(tmp_path, toy_pipeline, "two", concepts, **FEW)
    both = ["--save_pipeline", "false", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for done in ranks(SCRIPT, [*args, *both]):
        assert done.returncode == 0, done.stderr[-3000:]
    for name, masks in alone.items():
        again = masks_of(tmp_path / "pictures" / name / "own/masks")
        assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    first, other = (load_file(tmp_path / run / "refined.safetensors") for run in ("one", "two"))
    for name in first:
        close(first[name], other[name], RUN_WEIGHTS)
