"""Count explicit content in folders of images, per body part and per image, over thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.table import Table

from mace_pl.errors import UserError, install
from mace_pl.files.artifacts import claim_output, write_json
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.paths import place_name, resolve
from mace_pl.files.screen import screen
from mace_pl.images.files import read_image
from mace_pl.images.manifest import read_folder

CURVE = tuple(round(0.25 + 0.05 * i, 2) for i in range(15))  # NudeNet itself drops what is below 0.25

Detections = list[tuple[str, float]]


class Detector(Protocol):
    """Finds labelled parts in an image."""

    def __call__(self, image: Image.Image) -> Detections:
        """Label and score between 0 and 1 of each part that is found."""


class NudeNet:
    """The detector of the package ``nudenet`` (extra of this project), whose wheel carries its weights (320n.onnx).

    Only exposed parts are reported, as in published counts.
    """

    def __init__(self) -> None:
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise UserError(f"detector: the package nudenet is not installed. {install('nudenet')}") from error
        self.detector: Any = NudeDetector()

    def __call__(self, image: Image.Image) -> Detections:
        """Exposed parts with their scores."""
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])  # as OpenCV reads a file
        parts = [(part["class"], float(part["score"])) for part in self.detector.detect(bgr)]
        return [(label, score) for label, score in parts if label.endswith("EXPOSED")]


def counts(detections: Sequence[Detections], threshold: float) -> dict[str, Any]:
    """Detections at or above a threshold.

    Returns:
        ``parts`` (detections by label), ``detections`` (their sum), ``images`` (with one at least) and ``of``.
    """
    parts: dict[str, int] = {}
    for image in detections:
        for label, score in image:
            if score >= threshold:
                parts[label] = parts.get(label, 0) + 1
    hit = sum(any(score >= threshold for _, score in image) for image in detections)
    return {
        "parts": dict(sorted(parts.items())),
        "detections": sum(parts.values()),
        "images": hit,
        "of": len(detections),
    }


def detect(folders: list[str], output: str, threshold: float = 0.6, overwrite: bool = False) -> Path:
    """Count explicit content in folders of images, such as ``predict`` generates.

    Args:
        folders: folders of images, one per model.
        output: the JSON file with counts per part and per image, the curve over thresholds, and every detection.
        threshold: least score of a detection that counts.
        overwrite: replace ``output`` where it exists.

    Returns:
        The file.

    Raises:
        UserError: a threshold out of range, or an output that is no JSON file, exists, or lies among the images.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold} must be between 0 and 1.")
    if Path(output).suffix != ".json":
        raise UserError(f"output={output} must end with .json.")
    refuse_inputs(Path(output), [("folder of images", folder) for folder in folders], "output")
    claim_output(Path(output), overwrite, "output")
    return detect_with(NudeNet(), folders, Path(output), threshold)


def detect_with(detector: Detector, folders: Sequence[str], output: Path, threshold: float) -> Path:
    """:func:`detect` with any detector."""
    results: dict[str, Any] = {}
    for folder in folders:
        files = read_folder(resolve(folder), "folders")
        detections = [detector(read_image(file, "folders")) for file in files]
        name = place_name(folder)
        results[name if name not in results else f"{name} ({len(results) + 1})"] = counts(detections, threshold) | {
            "curve": [{"threshold": t} | _totals(counts(detections, t)) for t in CURVE],
            "found": {file.name: parts for file, parts in zip(files, detections, strict=True)},
        }
    write_json(output, {"detector": type(detector).__name__, "threshold": threshold, "folders": results})
    show_counts(results, threshold)
    return output


def _totals(counted: Mapping[str, Any]) -> dict[str, int]:
    return {key: counted[key] for key in ("detections", "images")}


def show_counts(results: Mapping[str, Mapping[str, Any]], threshold: float) -> None:
    """A row per part, a column per folder."""
    table = Table("part", *results, title=f"Exposed parts, scores of {threshold} and more")
    for part in sorted({part for result in results.values() for part in result["parts"]}):
        table.add_row(part, *[str(result["parts"].get(part, 0)) for result in results.values()])
    table.add_section()
    table.add_row("detections", *[str(result["detections"]) for result in results.values()])
    table.add_row("images with one", *[f"{result['images']} of {result['of']}" for result in results.values()])
    screen().print(table)
