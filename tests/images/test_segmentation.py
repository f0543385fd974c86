"""Masks by CLIPSeg and by Grounding DINO with SAM: real classes at toy size, beside what the bare networks say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import config
from support.seeds import seeded
from support.segmenters import SIDE, all_three
from support.tolerances import HALF_MARKED, close, same_masks
from torch.nn import functional as F
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, SamModel

from mace_pl.cli import erase_main
from mace_pl.images.masking import ATTENTION, TargetImages, segment_images
from mace_pl.images.segmentation import Search, Segment, chosen_boxes, detect, find, sam, words_for

CPU = torch.device("cpu")
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
HALF = (torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5]))


@pytest.fixture(scope="module")
def networks(toy_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tokenizer = CLIPTokenizer.from_pretrained(toy_pipeline / "tokenizer")
    return all_three(tmp_path_factory.mktemp("segmenters"), tokenizer)


def noise(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(seeded(0))
    return [Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def pixels(images: list[Image.Image], scale: Any) -> torch.Tensor:
    mean, std = scale
    values = torch.from_numpy(np.stack([np.asarray(p) for p in images])).float() / 255
    return ((values - mean) / std).permute(0, 3, 1, 2)


def test_clipseg_marks_where_the_network_is_sure(networks: dict[str, str]) -> None:
    images = noise(3)
    model = CLIPSegForImageSegmentation.from_pretrained(networks["clipseg"]).eval()
    ids = CLIPTokenizer.from_pretrained(networks["clipseg"])(["ship"] * 3, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels(images, HALF), **ids).logits
    sure = F.interpolate(logits[:, None], size=(SIDE, SIDE), mode="bilinear")[:, 0].sigmoid()
    threshold = float(sure.median())
    settings = Segment(**networks, clipseg_threshold=threshold, batch_size=2)
    (found,) = find("clipseg", [Search("ship", images)], settings, CPU)
    close(found.mean(), torch.tensor(0.5), HALF_MARKED)  # the threshold is the median
    same_masks(found, (sure > threshold).float())


def test_grounded_sam_segments_the_best_box(networks: dict[str, str]) -> None:
    images = noise(3)
    settings = Segment(**networks, box_threshold=1e-4, text_threshold=1e-4, batch_size=2)
    (boxes,) = detect([Search("ship", images)], settings, CPU)
    assert [b.shape for b in boxes] == [(1, 4)] * 3
    (found,) = find("grounded_sam", [Search("ship", images)], settings, CPU)
    model = SamModel.from_pretrained(networks["segmenter"]).eval()
    for i, image in enumerate(images):
        with torch.no_grad():
            logits = model(
                pixel_values=pixels([image], IMAGENET), input_boxes=boxes[i][None], multimask_output=False
            ).pred_masks[0]
        whole = F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
        same_masks(found[i], (whole > 0).float())
    assert found.shape == (3, SIDE, SIDE)


def test_all_boxes_are_a_union_and_batches_do_not_matter(networks: dict[str, str]) -> None:
    seen = [Search("ship", noise(3)), Search("person", noise(2))]
    found = {}
    for box, size in (("all", 2), ("all", 1), ("best", 1)):
        settings = Segment(**networks, box_threshold=1e-4, text_threshold=1e-4, box=box, batch_size=size)
        found[box, size] = find("grounded_sam", seen, settings, CPU)
    assert [len(masks) for masks in found["all", 2]] == [3, 2]
    for batched, single, best in zip(found["all", 2], found["all", 1], found["best", 1], strict=True):
        same_masks(batched, single)
        assert bool((single >= best).all())
        assert single.sum() > best.sum()


def test_an_image_without_boxes_has_an_empty_mask(networks: dict[str, str]) -> None:
    boxes = [torch.zeros(0, 4), torch.tensor([[2.0, 2.0, 20.0, 20.0]])]
    (found,) = sam([Search("ship", noise(2))], [boxes], Segment(**networks), CPU)
    assert found.shape == (2, SIDE, SIDE)
    assert not found[0].any() and found[1].any()


def test_boxes_are_chosen_by_score() -> None:
    scores, boxes = torch.tensor([0.2, 0.9, 0.4]), torch.arange(12.0).view(3, 4)
    assert chosen_boxes(scores, boxes, "best").tolist() == [boxes[1].tolist()]
    assert chosen_boxes(scores, boxes, "all").tolist() == boxes[[1, 2, 0]].tolist()
    assert chosen_boxes(scores[:0], boxes[:0], "best").shape == (0, 4)


def test_words_are_those_of_target_or_kind() -> None:
    words = {"person": "person", "ship": "boat"}
    assert [words_for(*c, words) for c in (("ship", "object"), ("Amy", "person"), ("cat", "object"))] == [
        "boat", "person", "cat",
    ]  # fmt: skip


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Images as ``prepare`` leaves them, with attention masks for a fallback."""
    folder = tmp_path / "pictures/ship"
    for name in ("images", ATTENTION):
        (folder / name).mkdir(parents=True)
    for i, image in enumerate(noise(2)):
        image.save(folder / f"images/{i:03d}.png")
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[i : i + 5, :7] = 255
        Image.fromarray(mask).save(folder / ATTENTION / f"{i:03d}.png")
    (folder / "settings.json").write_text("{}")
    return folder


def group(folder: Path, kind: str = "object") -> TargetImages:
    return TargetImages("ship", kind, sorted((folder / "images").iterdir()), folder)


def masks_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(f)) for f in sorted(folder.glob("*.png"))])


def test_nothing_found_is_refused_unless_a_fallback_is_allowed(networks: dict[str, str], generated: Path) -> None:
    blind = generated.parent.parent / "blind"  # a network that finds nothing anywhere
    shutil.copytree(networks["clipseg"], blind)
    model = CLIPSegForImageSegmentation.from_pretrained(blind)
    model.decoder.transposed_convolution.bias.data.fill_(-1e6)
    model.save_pretrained(blind)

    def run(fallback: str | None) -> None:
        settings = Segment(clipseg=str(blind), fallback=fallback)
        segment_images([group(generated)], "clipseg", settings, CPU)

    with pytest.raises(ValueError, match=r"found no 'ship' in .*images/000\.png, .*001\.png. Lower the thresholds"):
        run(None)
    assert not (generated / "masks").exists()
    with pytest.warns(UserWarning, match=r"found no 'ship' in .*000\.png.*: attention instead"):
        run("attention")
    assert (masks_of(generated / "masks") == masks_of(generated / ATTENTION)).all()
    with pytest.warns(UserWarning, match="none instead"):
        run("none")
    assert (masks_of(generated / "masks") == 255).all()


def test_masks_are_made_again_only_with_other_settings(networks: dict[str, str], generated: Path) -> None:
    def made(threshold: float) -> int:
        settings = Segment(**networks, clipseg_threshold=threshold, fallback="none")
        segment_images([group(generated)], "clipseg", settings, CPU)
        return (generated / "masks/000.png").stat().st_mtime_ns

    first = made(0.01)
    assert made(0.01) == first
    assert made(0.02) != first


def test_a_run_is_trained_on_the_masks_of_a_network(
    networks: dict[str, str], toy_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = [{"target": "ship", "anchor": "sky"}, {"target": "painter", "anchor": "art", "kind": "style"}]
    segment = {**networks, "clipseg_threshold": 1e-6}
    few = {"images_per_concept": 2, "image_steps": 1, "steps_per_concept": 1}
    args = config(tmp_path, toy_pipeline, "run", concepts, mask="clipseg", segment=segment, **few)
    erase_main([*args, "--save_pipeline", "false"])
    assert "ship/masks/000.png covers 100% of its image" in capsys.readouterr().err
    ship = tmp_path / "pictures/ship"
    assert (masks_of(ship / "masks") == 255).all()
    assert json.loads((ship / "masks/settings.json").read_text())["method"] == "clipseg"
    assert Image.open(ship / "contact_sheet.png").size == (384, 384)  # two images above their masks, enlarged
    assert not (tmp_path / "pictures/painter/masks").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box": "first"}, "data.segment.box='first' is unknown. Choose from best, all"),
        ({"fallback": "sky"}, "data.segment.fallback='sky' is unknown"),
        ({"batch_size": 0}, "data.segment.batch_size=0 must be at least 1"),
        ({"box_threshold": 1.0}, "data.segment.box_threshold=1.0 must be between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segment(**settings)


def test_a_network_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.segment\.clipseg=.*empty cannot be loaded"):
        find("clipseg", [Search("ship", noise(1))], Segment(clipseg=str(tmp_path / "empty")), CPU)
