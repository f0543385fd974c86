"""Prompts by which a model is scored: names, synonyms of the targets, and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset


class _Rows(IterableDataset[dict[str, Any]]):
    """Batches of rows; each process takes every world-th, so that no row is drawn twice."""

    def __init__(self, rows: list[dict[str, Any]], batch_size: int) -> None:
        self.batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield {key: [row[key] for row in batch] for key in ("prompt", "seed", "word")}


class EvaluationPrompts(LightningDataModule):
    """Every name and every synonym with every seed, in one template.

    Args:
        names: the classes; the targets among them.
        synonyms: other words for the targets, by target; may be empty.
        seeds: pictures per word, seeds 0 … seeds − 1.
        template: the prompt.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        names: list[str],
        synonyms: dict[str, list[str]] | None = None,
        seeds: int = 40,
        template: str = "a photo of a {}",
        batch_size: int = 20,
    ) -> None:
        super().__init__()
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"data.names={names} must hold at least two different names.")
        if seeds < 1:
            raise ValueError(f"data.seeds={seeds} must be at least 1.")
        if "{}" not in template:
            raise ValueError(f"data.template={template!r} must contain {{}} where the name goes.")
        self.names = names
        self.synonyms = synonyms or {}
        self.seeds = seeds
        self.template = template
        self.batch_size = batch_size
        #: every word that is drawn, with the class that it stands for
        self.words = {n: n for n in names} | {s: t for t, words in self.synonyms.items() for s in words}
        for target in self.synonyms:
            if target not in names:
                raise ValueError(f"data.synonyms names {target!r}, which is not in data.names={names}.")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches {prompt, seed, word}, lists of equal length."""
        rows = [
            {"prompt": self.template.replace("{}", word), "seed": seed, "word": word}
            for word in self.words
            for seed in range(self.seeds)
        ]
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return DataLoader(_Rows(rows[rank::world], self.batch_size), batch_size=None)
