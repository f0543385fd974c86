"""Any folder of captioned images, and batches whose order does not depend on where a run started."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tolerances import BY_HAND, close

from mace_pl.pretraining.image_folder import EndlessBatches, ImageFolder, ImagePool


def make_pool(size: int) -> ImagePool:
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(size, 3, 8, 8).contiguous()
    return ImagePool(images, [str(i) for i in range(size)])


def indices(batches: EndlessBatches, count: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in itertools.islice(batches, count)]


def test_a_batch_holds_images_captions_and_places_that_fit() -> None:
    batch = make_pool(256).batch(torch.tensor([0, 255, 7]))
    assert batch["caption"] == ["0", "255", "7"]
    expected = torch.tensor([-1.0, 1.0, 7 / 127.5 - 1])[:, None, None, None].expand(3, 3, 8, 8)
    close(batch["pixel_values"], expected, BY_HAND)


def test_each_round_shows_every_image_once_in_another_order() -> None:
    rounds = indices(EndlessBatches(make_pool(12), 4, seed=5, start=0, rank=0, world=1), 6)
    first, second = sum(rounds[:3], []), sum(rounds[3:], [])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_later_start_goes_on_where_the_first_run_would_be() -> None:
    whole = indices(EndlessBatches(make_pool(10), 3, seed=5, start=0, rank=0, world=1), 9)
    assert indices(EndlessBatches(make_pool(10), 3, seed=5, start=5, rank=0, world=1), 4) == whole[5:]


def test_two_ranks_together_see_what_one_sees() -> None:
    one = indices(EndlessBatches(make_pool(12), 2, seed=5, start=0, rank=0, world=1), 6)
    two = [indices(EndlessBatches(make_pool(12), 2, seed=5, start=0, rank=rank, world=2), 3) for rank in (0, 1)]
    assert [batch for pair in zip(*two, strict=True) for batch in pair] == one


def test_a_pool_smaller_than_the_batch_gives_what_it_has() -> None:
    assert sorted(indices(EndlessBatches(make_pool(2), 8, seed=5, start=0, rank=0, world=1), 1)[0]) == [0, 1]


def test_folder_is_read_scaled_cut_and_put_on_white(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.png")
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    rows = [{"file_name": "wide.png", "text": "a red thing"}, {"file_name": "clear.png", "caption": "nothing"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    data = ImageFolder(str(tmp_path), resolution=16, batch_size=2)
    data.setup("fit")
    assert data.pool is not None and data.pool.captions == ["a red thing", "nothing"]
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    assert torch.equal(data.pool.images[0], red)
    assert bool((data.pool.images[1] == 255).all())
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "line 1 is no JSON"),
        ('\n["a.png"]', "line 2 needs the texts file_name and text"),
        ('{"file_name": "a.png"}', "needs the texts"),
        ('{"file_name": "a.png", "text": "a"}', "a.png cannot be read"),
        ('{"file_name": "metadata.jsonl", "text": "a"}', "cannot be read as an image"),
    ],
)
def test_bad_folders_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), resolution=16).make_pool()


def test_bad_settings_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metadata\.jsonl"):
        ImageFolder(str(tmp_path)).make_pool()
    with pytest.raises(ValueError, match="resolution=30"):
        ImageFolder(str(tmp_path), resolution=30)
