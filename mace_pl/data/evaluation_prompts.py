"""Prompts by which a model is scored: names, synonyms of the targets, levels of prompts, and seeds."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from mace_pl.concepts.concept import read_names
from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.data.batches import Batches
from mace_pl.data.levels import SEEDS, asked_prompts
from mace_pl.errors import UserError


class EvaluationPrompts(LightningDataModule):
    """Every name and every synonym with every seed, in every template.

    Args:
        names: the classes: a list, or a text file with one on each line.
        synonyms: other words for names, by name; generated for runs that erase the name.
        seeds: images per word and template, seeds first_seed … first_seed + seeds − 1.
        templates: the prompts, with ``{}`` for the word; an image is judged by the classes in its own template.
        batch_size: images at once.
        first_seed: other seeds than those by which settings were chosen, for scores that are to be trusted.
        sentences: a JSON or YAML file for scores by levels of prompts: sentences with slots, and perhaps shapes with
            attributes, as ``mace_pl/pretraining/emoji/sentences.json``.
        descriptions: a file of descriptions by name, another level, as ``descriptions.json`` beside it.
    """

    def __init__(
        self,
        names: list[str] | str,
        synonyms: dict[str, list[str]] | None = None,
        seeds: int = 40,
        templates: list[str] | None = None,
        batch_size: int = 20,
        first_seed: int = 0,
        sentences: str | None = None,
        descriptions: str | None = None,
    ) -> None:
        super().__init__()
        self.names_file = names if isinstance(names, str) else None
        names = read_names(names, "data.names") if isinstance(names, str) else clean_names(names, "data.names")
        synonyms = {
            clean_name(n, "data.synonyms"): clean_names(w, "data.synonyms") for n, w in (synonyms or {}).items()
        }
        if len(names) < 2 or len(set(names)) != len(names):
            raise UserError(f"data.names={names} must hold at least two different names.")
        if seeds < 1:
            raise UserError(f"data.seeds={seeds} must be at least 1.")
        templates = ["a photo of a {}"] if templates is None else templates
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise UserError(f"data.templates={templates} must be prompts that contain {{}} once, where the name goes.")
        self.names = names
        self.synonyms = synonyms
        if first_seed < 0:
            raise UserError(f"data.first_seed={first_seed} must be at least 0.")
        self.seeds, self.first_seed = seeds, first_seed
        self.templates = templates
        self.batch_size = batch_size
        for target in self.synonyms:
            if target not in names:
                raise UserError(f"data.synonyms names {target!r}, which is not in data.names={names}.")

        words = names + [word for others in self.synonyms.values() for word in others]
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise UserError(f"data.synonyms: {', '.join(twice)} stands for two names, or twice. Name each word once.")
        self.asked = asked_prompts(names, sentences, descriptions)
        self.files = {"sentences": sentences, "descriptions": descriptions}

    def test_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Batches {prompt, seed, word}, lists of equal length, and the batch's template; seeds count from 0.

        Then batches {prompt, seed, asked} of the prompts of levels, ``asked`` the places among those. The same batches
        for each pass that the module wants, as its ``passes`` say.
        """
        words = self.names + [word for synonyms in self.synonyms.values() for word in synonyms]
        rows = [
            {"prompt": template.replace("{}", word), "seed": seed, "word": word, "template": index}
            for index, template in enumerate(self.templates)
            for word in words
            for seed in range(self.seeds)
        ]
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        batches = by_template(rows[rank::world], self.batch_size) + self.levels(rank, world)
        passes = 1 if trainer is None else int(getattr(trainer.lightning_module, "passes", 1))
        return [DataLoader(Batches(batches), batch_size=None) for _ in range(passes)]

    @property
    def level_seeds(self) -> int:
        """The seeds of each prompt of a level."""
        return min(self.seeds, SEEDS)

    def levels(self, rank: int, world: int) -> list[dict[str, Any]]:
        """A rank's batches of the prompts of levels."""
        rows = [
            {"prompt": one.prompt, "seed": seed, "asked": place}
            for place, one in enumerate(self.asked)
            for seed in range(self.level_seeds)
        ][rank::world]
        parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return [{key: [row[key] for row in part] for key in part[0]} for part in parts]


def by_template(rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Batches {prompt, seed, word, template} of rows, each of one template."""
    same = [[row for row in rows if row["template"] == t] for t in dict.fromkeys(row["template"] for row in rows)]
    parts = [part[i : i + batch_size] for part in same for i in range(0, len(part), batch_size)]
    return [
        {key: [row[key] for row in part] for key in ("prompt", "seed", "word")} | {"template": part[0]["template"]}
        for part in parts
    ]
