"""The image that `harden` leaves: a row for each edit, the same prompts and seed in all."""

import numpy as np
import pytest
import torch
from PIL import Image

from mace_pl.hardening.originals import Look
from mace_pl.hardening.pictures import compared, shown_prompts
from mace_pl.hardening.wording import Wording
from mace_pl.images.labelled_grid import labelled_grid
from mace_pl.models.backbone import backbone_of
from mace_pl.models.pipeline import load_pipeline
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate

LOOK = Look(steps=2, guidance=5.0)


@pytest.fixture
def pipeline(toy_pipeline: str) -> Pipeline:
    return load_pipeline(str(toy_pipeline))


def worded(*targets: str) -> Wording:
    own = [[(f"a photo of a {target}", "a photo of a house")] for target in targets]
    return Wording(targets, own, own, ["dog", "bird", "ship"], ["a photo of a {}", "a {}"])


def test_each_row_is_of_its_edit_and_the_last_one_stays(pipeline: Pipeline) -> None:
    backbone = backbone_of(pipeline)
    original = backbone.text_layers()
    edits = {"original": original, "erased": {name: torch.zeros_like(weight) for name, weight in original.items()}}
    image = compared(pipeline, worded("cat"), LOOK, 7, edits)
    assert all(not weight.any() for weight in backbone.text_layers().values())

    prompts = shown_prompts(pipeline, worded("cat"))
    rows: dict[str, list[Image.Image]] = {}
    for name, weights in edits.items():
        backbone.set_key_values(weights)
        rows[name] = generate(pipeline, prompts, [7] * len(prompts), 2, 5.0)
    assert np.array_equal(np.asarray(image), np.asarray(labelled_grid(rows, prompts)))
    swapped = labelled_grid({"original": rows["erased"], "erased": rows["original"]}, prompts)
    assert not np.array_equal(np.asarray(image), np.asarray(swapped)), "the edits look alike: nothing is compared"


def test_the_first_targets_stand_before_the_names_next_to_them(pipeline: Pipeline) -> None:
    prompts = shown_prompts(pipeline, worded(*"abcdef"))
    assert prompts[:4] == [f"a photo of a {target}" for target in "abcd"]
    assert sorted(prompts[4:]) == [f"a photo of a {name}" for name in ("bird", "dog", "ship")]
