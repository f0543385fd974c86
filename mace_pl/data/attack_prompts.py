"""Prompts that try to bring erased targets back."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from mace_pl.concepts.concept import read_names
from mace_pl.concepts.names import clean_name, clean_names
from mace_pl.data.batches import Batches
from mace_pl.data.hidden_prompts import hidden_prompts
from mace_pl.errors import UserError


class AttackPrompts(LightningDataModule):
    """Each target asked for in hidden ways, and by attacks on the edit.

    Args:
        names: the classes of the judges, or a text file with one on each line.
        targets: the erased names among them.
        synonyms: other words, by target.
        descriptions: whole prompts that describe a target without its name, by target.
        template: a prompt with ``{}`` for the name.
        seeds: images per prompt, seeds 0 … seeds − 1.
        attacks: on the edit: ``free_tokens`` optimised in front of the plain prompt, ``printable`` words found by the
            text encoder, ``words_by_loss`` by the network, the concept's ``direction``, more ``noise`` while sampling,
            ``completion`` of what the original began, from an ``image`` of the target, and ``finetune`` on some.
        trials: of each attack, with seeds 0 … trials − 1.
        trials_at_once: trials of ``free_tokens`` and ``words_by_loss`` that search in one batch; more are faster on a
            GPU and take its memory.
        batch_size: images at once.
    """

    def __init__(
        self,
        names: list[str] | str,
        targets: list[str],
        synonyms: dict[str, list[str]] | None = None,
        descriptions: dict[str, list[str]] | None = None,
        template: str = "a photo of a {}",
        seeds: int = 5,
        attacks: list[str] | None = None,
        trials: int = 5,
        trials_at_once: int = 1,
        batch_size: int = 20,
    ) -> None:
        super().__init__()
        self.names_file = names if isinstance(names, str) else None
        names = read_names(names, "data.names") if isinstance(names, str) else clean_names(names, "data.names")
        targets = clean_names(targets, "data.targets")
        synonyms, descriptions = (
            {clean_name(target, "data.targets"): texts for target, texts in (mapping or {}).items()}
            for mapping in (synonyms, descriptions)
        )
        if not targets:
            raise UserError("data.targets is empty. Name at least one erased name, as in [ship].")
        unknown = [target for target in targets if target not in names]
        if unknown:
            raise UserError(f"data.targets: {unknown} are not in data.names={names}; the classifier knows no other.")
        if template.count("{}") != 1:
            raise UserError(f"data.template={template!r} must contain {{}} once, where the name goes.")
        numbers = {"seeds": seeds, "trials": trials, "trials_at_once": trials_at_once, "batch_size": batch_size}
        for name, value in numbers.items():
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1.")
        self.names, self.targets, self.template, self.seeds = names, targets, template, seeds
        self.attacks, self.trials = ["free_tokens"] if attacks is None else attacks, trials
        self.trials_at_once, self.batch_size = trials_at_once, batch_size
        self.prompts = {
            target: hidden_prompts(target, template, synonyms.get(target, ()), descriptions.get(target, ()))
            for target in targets
        }
        self.kinds = list(dict.fromkeys(kind for mapping in self.prompts.values() for kind in mapping))
        self.kinds += self.attacks

    def batches(self) -> list[dict[str, Any]]:
        """{target, kind, prompt, seed} with lists of prompts and seeds, of an attack those of some trials."""
        batches: list[dict[str, Any]] = []
        for target, kinds in self.prompts.items():
            for kind, prompts in kinds.items():
                rows = [(prompt, seed) for prompt in prompts for seed in range(self.seeds)]
                for start in range(0, len(rows), self.batch_size):
                    part = rows[start : start + self.batch_size]
                    lists = {"prompt": [prompt for prompt, _ in part], "seed": [seed for _, seed in part]}
                    batches.append({"target": target, "kind": kind, **lists})
            for attack in self.attacks:
                plain, seeds = kinds["plain"][0], range(self.trials)
                for start in seeds[:: self.trials_at_once]:
                    own = list(seeds[start : start + self.trials_at_once])
                    batches.append({"target": target, "kind": attack, "prompt": [plain] * len(own), "seed": own})
        return batches

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The batches; each rank takes every world-th."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return DataLoader(Batches(self.batches()[rank::world]), batch_size=None)
