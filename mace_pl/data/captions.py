"""Captions whose statistics are kept: COCO annotation files, or names put into templates."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mace_pl.paths import resolve


class CaptionItem(TypedDict):
    """One distinct caption, how often it occurs, and its place in the order of first sight."""

    caption: str
    count: int
    index: int


class CaptionBatch(TypedDict):
    """N distinct captions with ``count`` [N] and ``index`` [N], int64."""

    caption: list[str]
    count: Tensor
    index: Tensor


class DistinctCaptions(Dataset[CaptionItem]):
    """Each distinct caption once, in the order of first sight.

    Args:
        counts: caption to number of occurrences.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self.items = [
            CaptionItem(caption=caption, count=count, index=index)
            for index, (caption, count) in enumerate(counts.items())
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> CaptionItem:
        return self.items[index]


def collate(items: Sequence[CaptionItem]) -> CaptionBatch:
    """Items to one batch of captions, counts [N] and indices [N]."""
    return CaptionBatch(
        caption=[item["caption"] for item in items],
        count=torch.tensor([item["count"] for item in items], dtype=torch.int64),
        index=torch.tensor([item["index"] for item in items], dtype=torch.int64),
    )


def parse_coco(raw: bytes, name: str) -> list[str]:
    """The captions of a COCO annotation file, in file order.

    Args:
        raw: the file's bytes.
        name: the file's name, for error messages.

    Raises:
        ValueError: not UTF-8, not JSON, no list of annotations, or an annotation without caption text.
    """
    layout = 'Expected COCO\'s layout: {"annotations": [{"caption": "..."}, ...]}'
    try:
        content = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"sources: {name} is not UTF-8 ({error}). Save it as UTF-8 without a byte-order mark."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"sources: {name} is no JSON ({error}). {layout}.") from error
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise ValueError(f"sources: {name} has no list 'annotations'. {layout}.")
    captions = []
    for index, annotation in enumerate(annotations):
        caption = annotation.get("caption") if isinstance(annotation, dict) else None
        if not isinstance(caption, str):
            raise ValueError(
                f"sources: {name}, annotation {index} has no text 'caption'. {layout}; correct or drop it."
            )
        if not caption.strip():
            raise ValueError(f"sources: {name}, annotation {index} has an empty caption. Fill it in or drop it.")
        captions.append(caption)
    return captions


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, names outermost.

    Raises:
        ValueError: an empty name, no template, or a template without exactly one ``{}``.
    """
    for name in names:
        if not name.strip():
            raise ValueError(f"names: {name!r} is empty. Fill it in or drop it.")
    if not templates:
        raise ValueError('templates=[] must not be empty where names are given. Use for example "a photo of {}".')
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f'templates: {template!r} must hold "{{}}" exactly once, where the name goes.')
    return [template.replace("{}", name) for name in names for template in templates]


class Captions(LightningDataModule):
    """Captions for statistics; equal captions are encoded once and counted.

    Args:
        sources: COCO annotation files (``{"annotations": [{"caption": ...}, ...]}``), relative to the working folder
            or to the project.
        names: names of a domain to preserve; each is put into each template.
        templates: prompts with ``{}`` where the name goes; used with ``names``.
        batch_size: distinct captions that are encoded at once, per process.
        limit: use only the first so many captions, repetitions included; all when left out.
    """

    def __init__(
        self,
        sources: list[str] | None = None,
        names: list[str] | None = None,
        templates: list[str] | None = None,
        batch_size: int = 64,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be at least 1; leave it out for all captions.")
        if not sources and not names:
            raise ValueError("sources and names are both empty: there is no caption. Give at least one of them.")
        if templates and not names:
            raise ValueError(f"templates={templates} needs names to put into them. Give names, or drop templates.")
        self.sources = sources or []
        self.names = names or []
        self.templates = templates or []
        self.batch_size = batch_size
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self.provenance: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Read and count the captions; ``provenance`` then lists each source with its SHA-256."""
        captions: list[str] = []
        self.provenance = []
        for source in self.sources:
            raw = read_source(source)
            found = parse_coco(raw, source)
            captions += found
            self._record(source, raw, len(found))
        if self.names:
            found = fill_templates(self.names, self.templates)
            captions += found
            self._record("names and templates", "\n".join(found).encode(), len(found))
        if not captions:
            raise ValueError(f"sources={self.sources} hold no caption at all. Give files with annotations.")
        self.counts = Counter(captions[: self.limit])
        world_size = self.trainer.world_size if self.trainer else 1
        if len(self.counts) < world_size:
            raise ValueError(
                f"{len(self.counts)} distinct captions cannot be shared by {world_size} processes. Give more captions, "
                f"or use fewer --trainer.devices."
            )

    def predict_dataloader(self) -> DataLoader[CaptionItem]:
        """Batches of distinct captions with their counts: see :class:`CaptionBatch`."""
        return DataLoader(DistinctCaptions(self.counts), batch_size=self.batch_size, collate_fn=collate)

    def _record(self, source: str, raw: bytes, captions: int) -> None:
        self.provenance.append(
            {"source": source, "sha256": hashlib.sha256(raw).hexdigest(), "captions": captions, "limit": self.limit}
        )


def read_source(source: str) -> bytes:
    """The bytes of a caption file.

    Raises:
        ValueError: it is missing, a folder, or not readable.
    """
    path: Path = resolve(source)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"sources: {source} cannot be read ({error.strerror}; looked at {path}). Give a COCO annotation file."
        ) from error
