"""Images and masks as cameras and editors write them: real files of Pillow in each form, by every reader."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.seeds import seeded
from support.tolerances import BY_HAND, close

import mace_pl
from mace_pl.data.concepts import ConceptData, load_masks
from mace_pl.images.files import endings, list_images, read_image, read_mask, read_rgba
from mace_pl.images.manifest import read_folder
from mace_pl.pretraining.image_folder import ImageFolder

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
TURNS = {  # EXIF orientation: how a viewer turns what is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def quarters() -> Image.Image:
    """24 x 16 pixels: red, blue, white and black quarters."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :12], pixels[:8, 12:], pixels[8:, :12] = RED, BLUE, WHITE
    return Image.fromarray(pixels)


def save_turned(path: Path, image: Image.Image, orientation: int) -> Image.Image:
    """Write an image with an EXIF orientation; returns it as a viewer shows it."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return image.transpose(TURNS[orientation])


def assert_near(image: Image.Image, expected: Image.Image, within: int = 0) -> None:
    assert image.mode == "RGB" and image.size == expected.size
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected.convert("RGB"), dtype=int)).max() <= within


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("ending", "within"), [(".jpg", 40), (".png", 0), (".tif", 0)])  # 40: JPEG at the edges
def test_an_image_is_turned_as_a_viewer_turns_it(tmp_path: Path, orientation: int, ending: str, within: int) -> None:
    shown = save_turned(tmp_path / f"a{ending}", quarters(), orientation)
    assert_near(read_image(tmp_path / f"a{ending}", "test"), shown, within)
    assert read_rgba(tmp_path / f"a{ending}", "test").size == shown.size


def test_every_reader_turns(tmp_path: Path) -> None:
    shown = save_turned(tmp_path / "a.png", quarters(), 6)  # 16 x 24
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a thing"}))
    data = ImageFolder(str(tmp_path), resolution=16)
    pool = data.make_pool()
    cut = np.asarray(shown.crop((0, 4, 16, 20)))
    assert np.array_equal(pool.images[0].permute(1, 2, 0).numpy(), cut)
    concepts = ConceptData([{"target": "ship", "anchor": "sky", "images": str(tmp_path)}], mask="none")
    pixels, _ = concepts.load(concepts.concepts[0], (24, 16))
    expected = torch.from_numpy(np.array(shown)).permute(2, 0, 1).float() / 127.5 - 1
    close(pixels[0], expected, BY_HAND)
    assert_near(read_image(read_folder(tmp_path, "test")[0], "test"), shown)


def test_no_other_module_opens_images() -> None:
    package = Path(mace_pl.__file__).parent
    opening = [
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if "Image.open(" in file.read_text(encoding="utf-8")
    ]
    assert opening == ["images/files.py"]


def test_transparent_parts_are_white_however_they_are_stored(tmp_path: Path) -> None:
    rgba = quarters().convert("RGBA")
    alpha = np.full((16, 24), 255, dtype=np.uint8)
    alpha[8:, 12:] = 0
    rgba.putalpha(Image.fromarray(alpha))
    expected = np.array(quarters())
    expected[8:, 12:] = 255
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.webp", lossless=True)
    quarters().save(tmp_path / "rgb.png", transparency=BLACK)
    palette = quarters().quantize(4)
    index = int(np.asarray(palette)[15, 23])
    palette.save(tmp_path / "palette.png", transparency=index)
    palette.save(tmp_path / "palette.gif", transparency=index)
    for name in ("rgba.png", "rgba.webp", "rgb.png", "palette.png", "palette.gif"):
        assert_near(read_image(tmp_path / name, "test"), Image.fromarray(expected))
    grey = Image.new("LA", (4, 4), (100, 128))
    grey.save(tmp_path / "la.png")
    assert_near(read_image(tmp_path / "la.png", "test"), Image.new("RGB", (4, 4), (177,) * 3), 1)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / name)
    found = np.asarray(read_image(tmp_path / name, "test"))[..., 0].astype(float)
    assert np.abs(found - values / 257).max() <= 0.5  # rounding to a level
    white = np.asarray(read_mask(tmp_path / name, "test")) > 127
    assert np.array_equal(white, values > 127.5 * 257)  # which is no whole number


def test_whole_numbers_and_fractions_of_more_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "whole.tif")
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "fractions.tif")
    assert np.asarray(read_image(tmp_path / "whole.tif", "test"))[0, :, 0].tolist() == [0, 255]
    assert np.asarray(read_image(tmp_path / "fractions.tif", "test"))[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 200.0]], dtype=np.float32)).save(tmp_path / "large.tif")
    with pytest.raises(ValueError, match=r"test: .*large.tif .*values go from 0 to 200, outside 0 to 1"):
        read_image(tmp_path / "large.tif", "test")


def test_cmyk_palettes_and_single_bits(tmp_path: Path) -> None:
    quarters().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    quarters().convert("CMYK").save(tmp_path / "cmyk.tif")
    quarters().quantize(4).save(tmp_path / "palette.png")
    assert_near(read_image(tmp_path / "cmyk.jpg", "test"), quarters(), 60)  # colours of JPEG bleed at the edges
    assert_near(read_image(tmp_path / "cmyk.tif", "test"), quarters())
    assert_near(read_image(tmp_path / "palette.png", "test"), quarters())
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert np.asarray(read_image(tmp_path / "bits.png", "test"))[0, :, 0].tolist() == [255, 0]


def test_endings_of_all_that_is_read_are_listed(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jfif", "c.tif", "d.TIFF", "e.gif", "f.webp", "g.bmp", "h.jpeg", "i.png", "j.ppm", "k.jpe"]
    names += ["l.avif"] if ".avif" in endings() else []
    for name in names:
        quarters().save(tmp_path / name)
    for other in ("a.txt", "metadata.jsonl", ".DS_Store", "._a.jpg"):
        (tmp_path / other).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    assert [file.name for file in list_images(tmp_path, "test")] == names
    assert all(read_image(file, "test").size == (24, 16) for file in list_images(tmp_path, "test"))


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "a.heif", "b.cr2", "c.svg", "d.jxl"])
def test_a_format_that_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"data.concepts: images: .* 1 images of formats .*: {name}. Save them as"):
        ConceptData([{"target": "ship", "anchor": "sky", "images": str(tmp_path)}])
    with pytest.raises(ValueError, match=rf"model.reference: .*{name}"):
        read_folder(tmp_path, "model.reference")


def test_what_is_cut_off_or_moves_is_named(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(seeded(0)).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.bmp"):
        noise.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
        with pytest.raises(ValueError, match=rf"test: .*{name} cannot be read as an image"):
            read_image(tmp_path / name, "test")
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tif"):
        noise.save(tmp_path / name, save_all=True, append_images=[quarters().resize((64, 64))])
        with pytest.raises(ValueError, match=rf"{name} .*holds 2 frames"):
            read_image(tmp_path / name, "test")


def test_the_first_of_a_cameras_images_in_one_file_is_read(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert_near(read_image(tmp_path / "a.jpg", "test"), quarters(), 130)  # 130: its colours are stored at half size


def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    return tmp_path / "images", tmp_path / "masks"


def left_white(width: int, height: int) -> Image.Image:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    return Image.fromarray(mask)


def test_a_mask_fits_the_image_as_it_is_shown(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    save_turned(images / "a.jpg", quarters(), 6)  # stored 24 x 16, shown 16 x 24
    left_white(16, 24).save(masks / "a.png")
    (found,) = load_masks(masks, images, "test")
    assert torch.equal(found[0], torch.from_numpy(np.asarray(left_white(16, 24)) > 0).float())
    stored = left_white(16, 24).transpose(Image.Transpose.ROTATE_90)  # as an editor writes it that keeps the EXIF
    assert save_turned(masks / "a.png", stored, 6).size == (16, 24)
    (again,) = load_masks(masks, images, "test")
    assert torch.equal(again, found)
    left_white(24, 16).save(masks / "a.png")
    with pytest.raises(ValueError, match=r"a.png is \(24, 16\), its image a.jpg is \(16, 24\) as shown"):
        load_masks(masks, images, "test")


def test_masks_in_every_form_say_the_same(tmp_path: Path) -> None:
    white = left_white(24, 16)
    white.save(tmp_path / "grey.png")
    white.convert("1").save(tmp_path / "bits.png")
    white.convert("RGB").save(tmp_path / "rgb.jpg", quality=95)
    white.convert("RGB").quantize(2).save(tmp_path / "palette.png")
    Image.fromarray(np.asarray(white).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    layer = Image.new("RGBA", white.size, WHITE)
    layer.putalpha(white)
    layer.save(tmp_path / "layer.png")  # painted white on a transparent layer
    for file in sorted(tmp_path.iterdir()):
        assert np.array_equal(np.asarray(read_mask(file, "test")) > 127, np.asarray(white) > 127), file.name


def test_masks_that_say_nothing_are_refused(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    quarters().save(images / "a.png")
    quarters().save(masks / "a.png")
    with pytest.raises(ValueError, match=r"test: .*a.png has colours"):
        load_masks(masks, images, "test")
    Image.fromarray((np.asarray(left_white(24, 16)) > 0).astype(np.uint8)).save(masks / "a.png")
    with pytest.raises(ValueError, match="is empty .*the lightest has 1 of 255"):
        load_masks(masks, images, "test")


def test_masks_are_matched_by_name(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    names = {"a.webp": "a.png", "a.q.jpg": "a.q.png", unicodedata.normalize("NFD", "é.png"): "é.png"}
    for i, (image, mask) in enumerate(names.items()):
        Image.new("RGB", (10 + i, 8)).save(images / image)
        Image.new("L", (10 + i, 8), 255).save(masks / mask)
    sizes = [tuple(mask.shape) for mask in load_masks(masks, images, "test")]
    assert sizes == [(1, 8, read_image(file, "test").width) for file in list_images(images, "test")]
    (masks / "a.png").rename(masks / "b.png")
    with pytest.raises(ValueError, match="has 3 masks, .* has 3 images; .*a, b is on one side only"):
        load_masks(masks, images, "test")
    Image.new("L", (8, 8)).save(masks / "b.bmp")
    with pytest.raises(ValueError, match=r"b.bmp and b.png in .* would share a mask"):
        load_masks(masks, images, "test")
