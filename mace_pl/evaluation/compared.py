"""What is compared: runs, whole pipelines of which one is in memory at a time, images of the original on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mace_pl.files.paths import resolve
from mace_pl.images.files import read_image, read_images
from mace_pl.images.manifest import read_folder
from mace_pl.models.pipeline import load_pipeline, model_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.run import Run


def is_pipeline(run: str, folder: Path) -> bool:
    """Whether a run is a whole pipeline: its folder, or a hub id."""
    hub = not folder.exists() and run.count("/") == 1 and not resolve(Path(run).parent).is_dir()
    return hub or (folder / "model_index.json").is_file()


def read_edit(
    folder: Path, original: Mapping[str, Tensor], hashes: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The refined weights and the targets of a run.

    Args:
        folder: of the run.
        original: the weights of the UNet that they are put into.
        hashes: of the original model: :func:`mace_pl.models.base_model.base_hashes`.

    Raises:
        UserError: no run is there, or it was made from another model.
    """
    run = Run.load(folder, "model.runs")
    weights = run.refined(original, "model.runs")
    run.base.check(hashes, "model.pretrained", f"model.runs={folder}", "model.pretrained")
    return weights, run.targets


def read_reference(reference: str) -> list[Path]:
    """The files of the reference folder, each of which decodes."""
    files = read_folder(resolve(reference), "model.reference")
    for file in files:
        read_image(file, "model.reference")
    return files


class WholePipelines:
    """Pipelines by name; the one that was asked for last is in memory, the others are not."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.name: str | None = None
        self.pipeline: Pipeline | None = None

    @property
    def names(self) -> list[str]:
        """In the order in which they were added."""
        return list(self.places)

    def add(self, name: str, source: str) -> str:
        """Check that a pipeline can be loaded, and free it; returns its fingerprint.

        Raises:
            UserError: it cannot be loaded.
        """
        self.places[name] = source
        fingerprint = model_fingerprint(self.load(name))
        self.drop()
        return fingerprint

    def load(self, name: str) -> Any:
        """The pipeline; another that is in memory is freed first."""
        if name != self.name:
            self.drop()
            self.pipeline = load_pipeline(self.places[name])
            self.name = name
        return self.pipeline

    def drop(self) -> None:
        """Free the pipeline in memory."""
        self.name, self.pipeline = None, None


class OriginalImages:
    """The original's images without loss on disk, which a model that comes later is measured against.

    Args:
        folder: where they lie; each rank reads only what it wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _files(self, batch: Mapping[str, Any]) -> list[Path]:
        """By template, word and seed; a word is its place, so that no two share a file."""
        cells = zip(batch["place"], batch["seed"], strict=True)
        return [self.folder / f"{batch['template']}_{word}_{seed}.png" for word, seed in cells]

    def write(self, batch: Mapping[str, Any], images: Sequence[Image.Image]) -> None:
        """Write the images of a batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, image in zip(self._files(batch), images, strict=True):
            image.save(file, compress_level=1)

    def read(self, batch: Mapping[str, Any]) -> list[Image.Image]:
        """Those of the same batch."""
        return read_images(self._files(batch), "model.output")
