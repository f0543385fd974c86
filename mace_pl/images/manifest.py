"""A folder of generated images and the manifest that says how each was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mace_pl.errors import UserError
from mace_pl.files.artifacts import slug, write_json, written_aside
from mace_pl.files.identity import differing
from mace_pl.images.files import list_images

FILE = "manifest.json"
REPLACED = ".replaced"  # in the folder: the images of a run that is being replaced
LONGEST = 60  # characters of a prompt in a file name


def image_name(index: int, row: Mapping[str, Any]) -> str:
    """The file of a row: its number, the prompt's first words and the seed."""
    return f"{index:06d}_{slug(row['prompt'])[:LONGEST]}_{row['seed']}.png"


def write_image(path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Write a PNG with its facts as text chunks, aside and renamed: a file that is there is whole.

    What a killed process left in the folder is for the caller to remove: there may be thousands of images.
    """
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    with written_aside(path, clear=False) as aside:
        image.save(aside, format="PNG", pnginfo=info)


def begin(folder: Path, content: Mapping[str, Any]) -> set[int]:
    """Check the manifest of an earlier run in the folder, and say which of its rows are generated.

    Args:
        folder: of the images.
        content: ``model``, ``settings`` and ``rows`` of this run.

    Returns:
        The indices of the rows whose images are there; none in a new folder.

    Raises:
        UserError: the folder holds other files, or images of other weights, settings or prompts.
    """
    path = folder / FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(p.name != REPLACED for p in folder.iterdir())):
            raise UserError(f"model.output: {folder} exists and has no {FILE}. Choose another --model.output.")
        return set()
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.output: {path} cannot be read ({error}). Choose another --model.output.") from error
    why = differing(_inputs(manifest), _inputs(content))
    if why:
        raise UserError(
            f"model.output: {folder} holds images of a run that had other {' and other '.join(why)}. Give that run's "
            f"command to resume it, pass --model.overwrite true, or choose another --model.output."
        )
    return {i for i, row in enumerate(content["rows"]) if (folder / row["file"]).is_file()}


def _inputs(content: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in two halves of a run: of the model its weights, wherever they lie."""
    model = content.get("model")
    weights = model.get("fingerprint") if isinstance(model, dict) else None
    return {"weights": weights, "settings": content.get("settings"), "prompts": content.get("rows")}


def set_aside(folder: Path) -> None:
    """Move what a manifest in the folder names, and it, into ``.replaced``; other files stay.

    Images that are there already are those of a finished run: what an interrupted replacement left beside them goes.
    """
    path, aside = folder / FILE, folder / REPLACED
    if not path.is_file():
        return
    names = [Path(row["file"]).name for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    keep = not aside.is_dir()
    aside.mkdir(exist_ok=True)
    for file in [folder / name for name in names] + [path]:  # the manifest last: until then all of it is known
        if file.is_file() and keep:
            file.replace(aside / file.name)
        else:
            file.unlink(missing_ok=True)


def drop_aside(folder: Path) -> None:
    """Remove what :func:`set_aside` moved, once its replacement is complete."""
    aside = folder / REPLACED
    for file in aside.iterdir() if aside.is_dir() else ():
        file.unlink()
    if aside.is_dir():
        aside.rmdir()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``."""
    write_json(folder / FILE, content)


def read_folder(folder: Path, setting: str) -> list[Path]:
    """The images of a folder, those of its manifest where it has one, else all of them.

    Raises:
        UserError: no such folder, no image in it, one that is missing or of a format that is not read.
    """
    manifest = folder / FILE
    if not manifest.is_file():
        return list_images(folder, setting)
    rows = json.loads(manifest.read_text(encoding="utf-8"))["rows"]
    files = [folder / row["file"] for row in rows]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{setting}: {folder} lacks {len(missing)} images of its manifest: {missing[0].name}")
    return files
