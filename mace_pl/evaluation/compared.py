"""What is compared: runs, whole pipelines of which one is in memory at a time, images of the original on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.evaluation.report_images import ORIGINAL
from mace_pl.files.paths import resolve
from mace_pl.images.files import read_image, read_images
from mace_pl.images.manifest import read_folder
from mace_pl.models.backbone import backbone_of
from mace_pl.models.base_model import base_hashes
from mace_pl.models.on_device import OnDevice
from mace_pl.models.pipeline import load_pipeline, model_fingerprint
from mace_pl.models.protocols import Pipeline
from mace_pl.models.text_encoding import spelled_as
from mace_pl.run import Run


def is_pipeline(run: str, folder: Path) -> bool:
    """Whether a run is a whole pipeline: its folder, or a hub id."""
    hub = not folder.exists() and run.count("/") == 1 and not resolve(Path(run).parent).is_dir()
    return hub or (folder / "model_index.json").is_file()


def read_edit(
    folder: Path, original: Mapping[str, Tensor], hashes: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str | None]]:
    """The refined weights of a run, and its anchors by target.

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
    return weights, {concept["target"]: concept.get("anchor") or None for concept in run.concepts}


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
        fingerprint = model_fingerprint(self.load(name, torch.device("cpu")))
        self.drop()
        return fingerprint

    def load(self, name: str, device: torch.device) -> Pipeline:
        """The pipeline, on a device; another that is in memory is freed first."""
        if self.pipeline is None or name != self.name:
            self.drop()
            self.pipeline = load_pipeline(self.places[name])
            self.pipeline.to(device)
            self.name = name
        return self.pipeline

    def drop(self) -> None:
        """Free the pipeline in memory."""
        self.name, self.pipeline = None, None


class ScoredModels:
    """An original pipeline, edits that are put into it, and whole pipelines.

    Args:
        pipeline: the original.
        runs: output folders of ``fit`` and whole pipelines, by name.
        targets: what whole pipelines erase, and perhaps what they put in place of each.

    Raises:
        UserError: a run that is neither, one made from another model, or a whole pipeline without targets.
    """

    def __init__(
        self, pipeline: Pipeline, runs: Mapping[str, str], targets: Sequence[str] | Mapping[str, str] | None
    ) -> None:
        self.pipeline, self.runs = pipeline, dict(runs)
        self.unet = backbone_of(pipeline).network
        self.wholes, self.placed = WholePipelines(), OnDevice(pipeline)
        self.fingerprints = {ORIGINAL: model_fingerprint(pipeline)}
        self.weights: dict[str, dict[str, Tensor]] = {ORIGINAL: {}}
        self.anchors: dict[str, dict[str, str | None]] = {}  # what each run erases, with what comes in its place
        hashes = base_hashes(pipeline)  # runs of another base are refused
        given = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(targets or [])
        for name, run in self.runs.items():
            if is_pipeline(run, resolve(run)):
                if not given:
                    raise UserError(f"model.targets is empty, and the pipeline {run} does not say what it erases.")
                self.fingerprints[name] = self.wholes.add(name, run)
                self.weights[name], self.anchors[name] = {}, dict(given)
                continue
            original = self.unet.state_dict()
            self.weights[name], self.anchors[name] = read_edit(resolve(run), original, hashes)
            self.weights[ORIGINAL] |= {key: original[key].clone() for key in self.weights[name]}

    def spell(self, names: Sequence[str]) -> None:
        """Write targets and anchors as ``names`` do, where those mean the same to the model."""
        for run, anchors in self.anchors.items():
            targets = spelled_as(self.pipeline, list(anchors), names)
            known = [None if a is None else spelled_as(self.pipeline, [a], names)[0] for a in anchors.values()]
            self.anchors[run] = dict(zip(targets, known, strict=True))

    @property
    def targets(self) -> dict[str, list[str]]:
        """What each run erases."""
        return {run: list(anchors) for run, anchors in self.anchors.items()}

    @property
    def passes(self) -> int:
        """How often the data are gone through: with the original and edits of it, then with each whole pipeline."""
        return 1 + len(self.wholes.names)

    def of_pass(self, index: int) -> list[str]:
        """The models of a pass, the original first."""
        whole = self.wholes.names
        return [whole[index - 1]] if index else [name for name in self.weights if name not in whole]

    def take(self, name: str, device: torch.device) -> Pipeline:
        """The pipeline of a model, on a device, which another one leaves first."""
        if name in self.wholes.names:
            self.placed.leave()
            return self.wholes.load(name, device)
        self.placed.enter(device)
        self.unet.load_state_dict(self.weights[ORIGINAL] | self.weights[name], strict=False)
        return self.pipeline

    def leave(self) -> None:
        """All is generated: free what is on the device."""
        self.placed.leave()
        self.wholes.drop()


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
