"""Captions whose Gram statistics are summed: files of captions, or names put into templates."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mace_pl.data.caption_counts import CaptionStore
from mace_pl.data.caption_files import CaptionSource
from mace_pl.errors import UserError
from mace_pl.files.paths import place_name


class CaptionBatch(TypedDict):
    """N distinct captions with ``count`` [N] and ``index`` [N] (place in the order of first sight), int64."""

    caption: list[str]
    count: Tensor
    index: Tensor


class CaptionBatches(IterableDataset[CaptionBatch]):
    """One rank's share of the distinct captions in batches; a share of none is one batch of none.

    Captions go to the ranks in turn, so that each is on exactly one of them, whatever their numbers.

    Args:
        store: the captions.
        batch_size: captions of a batch.
        by_length: short captions first.
        rank: this one.
        world_size: the number of ranks.
        done: captions of the share to leave out, because they were summed before.
    """

    def __init__(
        self, store: CaptionStore, batch_size: int, by_length: bool, rank: int, world_size: int, done: int = 0
    ) -> None:
        self.store, self.batch_size, self.by_length = store, batch_size, by_length
        self.start, self.step = rank + done * world_size, world_size

    def __len__(self) -> int:
        """Batches: at least one, since Lightning calls no hook of a rank that has none."""
        left = len(range(self.start, len(self.store), self.step))
        return max(1, -(-left // self.batch_size))

    def __iter__(self) -> Iterator[CaptionBatch]:
        """The batches in an order that is the same in every run."""
        rows = self.store.rows(self.by_length, self.start, self.step)
        for _ in range(len(self)):
            chosen = list(itertools.islice(rows, self.batch_size))
            yield CaptionBatch(
                caption=[caption for caption, _, _ in chosen],
                count=torch.tensor([count for _, count, _ in chosen], dtype=torch.int64),
                index=torch.tensor([index for _, _, index in chosen], dtype=torch.int64),
            )


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, names outermost.

    Raises:
        UserError: an empty name, no template, or a template without exactly one ``{}``.
    """
    for name in names:
        if not name.strip():
            raise UserError(f"names: {name!r} is empty. Fill it in or drop it.")
    if not templates:
        raise UserError('templates=[] must not be empty where names are given. Use for example "a photo of {}".')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f'templates: {template!r} must hold "{{}}" exactly once, where the name goes.')
    return [template.replace("{}", name) for name in names for template in templates]


class Captions(LightningDataModule):
    """Captions for statistics; equal captions are encoded once and counted.

    Files are read as streams and counted on disk, so memory does not grow with their number.

    Args:
        sources: files of captions, relative to the working folder or to the project: COCO annotations (.json), a
            caption a line (.txt), or a column of .csv, .jsonl or .parquet, each with .gz behind it or not;
            annotations.zip:NAME is a file in a zip, annotations.zip alone the only captions file in it.
        names: names of a domain to preserve; each is put into each template.
        templates: prompts with ``{}`` where the name goes; used with ``names``.
        batch_size: distinct captions that are encoded at once, per rank.
        limit: use only the first so many captions, repetitions included; all when left out.
        column: the column of .csv, .jsonl and .parquet.
        member: the file to read in every zip of ``sources`` that names none.
        tokens: what is summed of each caption: ``all`` tokens, padding included, as published, or those of the
            ``caption`` from its start to its end token, which is several times cheaper.
    """

    store: CaptionStore  # of setup; a database cannot be handed to the processes that a strategy starts

    def __init__(
        self,
        sources: list[str] | None = None,
        names: list[str] | None = None,
        templates: list[str] | None = None,
        batch_size: int = 64,
        limit: int | None = None,
        column: str = "caption",
        member: str | None = None,
        tokens: Literal["all", "caption"] = "all",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1; leave it out for all captions.")
        if not sources and not names:
            raise UserError("sources and names are both empty: there is no caption. Give at least one of them.")
        if templates and not names:
            raise UserError(f"templates={templates} needs names to put into them. Give names, or drop templates.")
        if tokens not in ("all", "caption"):
            raise UserError(f"tokens={tokens!r} must be 'all' or 'caption'.")
        self.sources = sources or []
        self.names = names or []
        self.templates = templates or []
        self.batch_size = batch_size
        self.limit = limit
        self.column = column
        self.member = member
        self.tokens = tokens
        self.done = 0  # captions of this rank's share that an earlier run has summed
        self.provenance: list[dict[str, Any]] = []

    def resume(self, done: int) -> None:
        """Leave out so many captions of this rank's share, which an earlier run has summed."""
        self.done = done

    def setup(self, stage: str) -> None:
        """Count the captions; ``provenance`` then lists each source that was used, with its SHA-256.

        Raises:
            UserError: a file that cannot be read or used; see :class:`mace_pl.data.caption_files.CaptionSource`.
        """
        self.store, self.provenance, self.done = CaptionStore(), [], 0
        for name in self.sources:
            source = CaptionSource(name, self.column, self.member)
            added = self._add(source.captions())
            self._record(place_name(name), source.sha256, added, {"column": self.column} if source.has_column else {})
        if self.names:
            prompts = fill_templates(self.names, self.templates)
            sha256 = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
            self._record("names and templates", sha256, self._add(iter(prompts)), {})
        if not self.store.total:
            raise UserError(f"sources={self.sources} hold no caption at all. Give files with captions.")

    def predict_dataloader(self) -> DataLoader[CaptionBatch]:
        """This rank's batches of distinct captions with their counts: see :class:`CaptionBatch`."""
        rank, size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = CaptionBatches(self.store, self.batch_size, self.tokens == "caption", rank, size, self.done)
        return DataLoader(batches, batch_size=None)

    def _add(self, captions: Iterator[str]) -> int:
        left = None if self.limit is None else self.limit - self.store.total
        added = self.store.add(itertools.islice(captions, left))
        close = getattr(captions, "close", None)
        if close:
            close()  # the rest of the file is hashed
        return added

    def _record(self, source: str, sha256: str, captions: int, more: dict[str, Any]) -> None:
        if captions or self.limit is None or self.store.total < self.limit:
            record = {"source": source, "sha256": sha256, "captions": captions, "limit": self.limit}
            self.provenance.append(record | more)
