"""What is to be drawn: rows of prompt and seed out of a file, or names in templates."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from mace_pl.data.batches import Batches
from mace_pl.data.sources import CaptionSource
from mace_pl.paths import resolve


class Prompts(LightningDataModule):
    """Rows to draw, from a file or from names.

    Args:
        file: a CSV (columns ``prompt``, ``seed`` and any others, which are kept), or captions as ``cache`` reads them
            (``.txt``, ``.json`` of COCO, ``.jsonl``, ``.parquet``).
        column: the column of the prompts.
        names: words that are put into ``templates``, in place of ``file``.
        templates: prompts with ``{}`` for the name.
        seeds: pictures per prompt, seeds 0 … seeds − 1; a CSV with a column ``seed`` brings its own.
        limit: take the first so many rows; all when None.
        batch_size: pictures at once on a device; no picture depends on it.
    """

    def __init__(
        self,
        file: str | None = None,
        column: str = "prompt",
        names: list[str] | None = None,
        templates: list[str] | None = None,
        seeds: int = 1,
        limit: int | None = None,
        batch_size: int = 20,
    ) -> None:
        super().__init__()
        templates = ["a photo of a {}"] if templates is None else templates
        if (file is None) == (names is None):
            raise ValueError("data needs prompts: give either --data.file or --data.names.")
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError(f"data.templates={templates} must be prompts that contain {{}} once, where the name goes.")
        for name, value in (("seeds", seeds), ("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1.")
        found = named_rows(names, templates, seeds) if names is not None else file_rows(str(file), column, seeds)
        self.rows = list(islice(found, limit))
        if not self.rows:
            raise ValueError(f"data.file={file} holds no prompt. Give a file with at least one.")
        self.batch_size = batch_size
        self.done: Collection[int] = ()  # rows that were drawn by an earlier run, set by the module

    def predict_dataloader(self) -> DataLoader[dict[str, list[Any]]]:
        """Batches {index, prompt, seed} of the rows that are not done; each process takes every world-th."""
        pending = [(i, row) for i, row in enumerate(self.rows) if i not in self.done]
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        own = pending[rank::world]
        parts = [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
        batches = [
            {
                "index": [i for i, _ in part],
                "prompt": [row["prompt"] for _, row in part],
                "seed": [row["seed"] for _, row in part],
            }
            for part in parts
        ]
        return DataLoader(Batches(batches), batch_size=None)


def named_rows(names: list[str], templates: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """Every name in every template with every seed."""
    if not names:
        raise ValueError("data.names is empty. Give at least one name.")
    for template in templates:
        for name in names:
            for seed in range(seeds):
                columns = {"name": name, "template": template}
                yield {"prompt": template.replace("{}", name), "seed": seed, "columns": columns}


def file_rows(file: str, column: str, seeds: int) -> Iterator[dict[str, Any]]:
    """The rows of a file.

    Raises:
        ValueError: naming the file and the line: no such file, no prompt, or a seed that is no number.
    """
    path = resolve(file)
    if not path.is_file() and ".zip:" not in file:
        raise ValueError(f"data.file={file} does not exist. Give a CSV with a column prompt, or a file of captions.")
    if path.suffix == ".csv":
        yield from csv_rows(path, column, seeds)
        return
    for prompt in CaptionSource(file, column).captions():
        for seed in range(seeds):
            yield {"prompt": prompt, "seed": seed, "columns": {}}


def csv_rows(path: Path, column: str, seeds: int) -> Iterator[dict[str, Any]]:
    """The rows of a CSV, with all their columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or [])
            if column not in columns:
                shown = ", ".join(columns) or "none"
                raise ValueError(
                    f"data.file: {path} has no column {column!r}, its columns are {shown}. Name one with --data.column."
                )
            for row in reader:
                yield from _numbered(row, column, seeds, f"data.file: {path}, line {reader.line_num}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data.file: {path} is no CSV in UTF-8 ({error}). Correct it.") from error


def _numbered(row: dict[str, Any], column: str, seeds: int, place: str) -> Iterator[dict[str, Any]]:
    """One line, once by its own seed or by each of ``seeds``."""
    if None in row or None in row.values():
        raise ValueError(f"{place} has other fields than the first line. Correct it.")
    if not row[column].strip():
        raise ValueError(f"{place} has an empty prompt. Fill it in or drop it.")
    others = {key: value for key, value in row.items() if key not in (column, "seed")}
    if "seed" not in row:
        for seed in range(seeds):
            yield {"prompt": row[column], "seed": seed, "columns": others}
        return
    try:
        seed = int(row["seed"])
    except ValueError as error:
        raise ValueError(f"{place} has seed {row['seed']!r}, which is no whole number. Correct it.") from error
    if not 0 <= seed < 2**63:
        raise ValueError(f"{place} has seed {seed}, which must be between 0 and 2^63 - 1. Correct it.")
    yield {"prompt": row[column], "seed": seed, "columns": others}
