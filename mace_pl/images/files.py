"""Images and masks out of files, for everything that reads them: as a viewer shows them, in 8 bits.

An image is turned as its EXIF orientation says and put on white where it is transparent; grey of 16 bits is scaled;
CMYK and palettes become RGB. A mask is turned likewise and put on black. What cannot be read so is refused by name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mace_pl.errors import UserError

#: what Pillow reads reliably; where it was built without one of them, files of that format are refused
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
#: endings of images that are not read, so that none is left out without a word
UNREAD = frozenset({".arw", ".avif", ".avifs", ".cr2", ".cr3", ".dcm", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic"})
UNREAD |= {".heics", ".heif", ".hif", ".ico", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pcx", ".pdf", ".psd", ".qoi"}
UNREAD |= {".raf", ".raw", ".rw2", ".svg", ".svgz", ".tga", ".wmf", ".xcf"}
COLOUR = 16  # by how much the channels of a grey mask may differ: JPEG rounds them


@cache
def endings() -> dict[str, str]:
    """The formats that are read by the endings of their files, in lower case."""
    formats = Image.registered_extensions()  # initialises Pillow's list of formats
    return {ending: name for ending, name in sorted(formats.items()) if name in FORMATS and name in Image.OPEN}


def list_images(folder: Path, setting: str) -> list[Path]:
    """The images of a folder, sorted by name; its subfolders and hidden files are not looked at.

    Args:
        folder: the folder.
        setting: the option that named it, for error messages.

    Raises:
        UserError: no such folder, no image in it, or images of a format that is not read.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} is no folder. Give a folder of images.")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    unread = [file.name for file in files if file.suffix.lower() in UNREAD - endings().keys()]
    if unread:
        shown = ", ".join(unread[:3]) + (", ..." if len(unread) > 3 else "")
        raise UserError(
            f"{setting}: {folder} holds {len(unread)} images of formats that are not read: {shown}. Save them as .png "
            f"or .jpg, or remove them."
        )
    images = [file for file in files if file.suffix.lower() in endings()]
    if not images:
        raise UserError(
            f"{setting}: {folder} holds no image ({', '.join(endings())}; subfolders are not looked at). Give "
            f"a folder of images."
        )
    return images


def by_stem(files: Sequence[Path], setting: str) -> dict[str, Path]:
    """Files by their names without endings, whichever way a file system writes accents.

    Raises:
        UserError: two files that differ by their ending only.
    """
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(unicodedata.normalize("NFC", file.stem), file)
        if other != file:
            raise UserError(
                f"{setting}: {other.name} and {file.name} in {file.parent} would share a mask. Rename one, or pass "
                f"masks: none."
            )
    return stems


def read_image(path: Path, setting: str) -> Image.Image:
    """The image in RGB as a viewer shows it: turned as its EXIF orientation says, on white where it is transparent.

    Raises:
        UserError: naming a file that does not decode, is cut off, holds several frames, or values of no known range.
    """
    return _on(_open(path, setting), "white")


def read_images(paths: Sequence[Path], setting: str) -> list[Image.Image]:
    """Several of :func:`read_image`."""
    return [read_image(path, setting) for path in paths]


def read_rgba(path: Path, setting: str) -> Image.Image:
    """The image with its transparency, turned as its EXIF orientation says."""
    return _open(path, setting).convert("RGBA")


def read_mask(path: Path, setting: str) -> Image.Image:
    """The mask in grey of 8 bits: turned as its own EXIF orientation says, black where it is transparent.

    Raises:
        UserError: as :func:`read_image`, or colours, which do not say what is inside.
    """
    mask = _on(_open(path, setting), "black")
    pixels = np.asarray(mask, dtype=np.int16)
    if int((pixels.max(-1) - pixels.min(-1)).max()) > COLOUR:
        raise UserError(f"{setting}: {path} has colours. Save a mask that is white on the target and black elsewhere.")
    return mask.convert("L")


def _open(path: Path, setting: str) -> Image.Image:
    """The image turned and in 8 bits per channel."""
    try:
        with Image.open(path, formats=sorted(set(endings().values()))) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # cameras write MPO: the image, then its previews
                raise UserError(f"it holds {frames} frames; save one of them")
            return _eight_bits(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{setting}: {path} cannot be read as an image ({error}). Replace or remove it.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits scaled to 8: whole numbers as 16 bits, fractions from 0 to 1."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high, white = float(values.min()), float(values.max()), 1.0 if image.mode == "F" else 65535.0
    if not 0 <= low <= high <= white:
        raise UserError(f"its values go from {low:g} to {high:g}, outside 0 to {white:g}; save it with 8 or 16 bits")
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


def _on(image: Image.Image, colour: str) -> Image.Image:
    """RGB, on a colour where the image is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, colour)
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
