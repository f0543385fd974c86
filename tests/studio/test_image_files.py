"""Images as files: whole, written once, and not more than there may be."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image

from mace_pl.studio.image_files import ImageFiles


def image(shade: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (shade, 0, 0))


def test_an_image_that_comes_again_is_not_written_again(tmp_path: Path) -> None:
    """A browser may be reading it."""
    files = ImageFiles(tmp_path)
    (first,) = files.places([image(1)])
    before = Path(first).stat()
    assert files.places([image(1), image(2)])[0] == first
    after = Path(first).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(image(1)))


def test_those_that_were_asked_for_longest_ago_are_removed(tmp_path: Path) -> None:
    files = ImageFiles(tmp_path, most=2)
    one, two = files.places([image(1), image(2)])
    files.places([image(1), image(3)])
    assert Path(one).is_file() and not Path(two).exists()
    assert Path(files.places([image(2)])[0]).is_file()


def test_threads_share_them(tmp_path: Path) -> None:
    files, found = ImageFiles(tmp_path), []

    def ask() -> None:
        found.append(files.places([image(shade) for shade in range(20)]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(places == found[0] for places in found)
    for shade, place in enumerate(found[0]):
        assert Image.open(place).getpixel((0, 0)) == (shade, 0, 0)
    assert len(list(tmp_path.iterdir())) == 20
