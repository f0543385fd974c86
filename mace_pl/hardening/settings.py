"""How an edit is hardened."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mace_pl.errors import UserError
from mace_pl.training.calls import Passes
from mace_pl.training.team import pieces_of

MOST = 1_000_000  # of a rate or a weight: beyond it float32 overflows, and nothing is to be had


@dataclass(frozen=True)
class Hardening:
    """Rounds of finding free tokens against the edit as it is by then, and of training one LoRA against them.

    Args:
        rank: of the LoRA.
        layers: which attention it changes (queries, keys, values, outputs): ``all``, ``cross`` or ``self``.
        rounds: how often tokens are found and trained against; what was found stays.
        steps: optimizer steps of a round, for each target.
        lr: learning rate of Adam in the first step, from which it falls along a line to zero.
        found: sets of tokens that are found in a round, for each target.
        tokens: free tokens of a set.
        attack_steps: steps in which a set is found.
        attack_lr: learning rate of these, on embeddings that are scaled by their mean size.
        attack_samples: noises and timesteps in each of them.
        attack_moves: how far tokens move on against the edit in each step that trains against them, in parts of
            embeddings' mean size; 0 leaves them as they were found.
        images: images of each target that the original generates, to which noise is added.
        preserved_images: images of names to preserve that the original generates, likewise; where they are fewer than
            the names, half of them show those next to the targets.
        batch: samples of a step that ask for a target.
        preserved_batch: samples of a step that ask for a name to preserve; each is there once more with the empty
            prompt, where images are generated with classifier-free guidance.
        preserved_weight: of their part of the loss, for one target; for several it is divided by the root of their
            number.
        plain: share of ``batch`` without found tokens: prompts, synonyms and sentences of the target.
        samples_at_once: samples that pass through a process's network at once; less takes less memory, and the same
            weights come out but for rounding.
    """

    rank: int = 32
    layers: Literal["all", "cross", "self"] = "all"
    rounds: int = 3
    steps: int = 60
    lr: float = 2e-3
    found: int = 3
    tokens: int = 8
    attack_steps: int = 40
    attack_lr: float = 0.1
    attack_samples: int = 4
    attack_moves: float = 0.1
    images: int = 8
    preserved_images: int = 96
    batch: int = 8
    preserved_batch: int = 10
    preserved_weight: float = 20.0
    plain: float = 0.5
    samples_at_once: int = 18

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the one that cannot be.
        """
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"harden.{name}={value} must be at least 1.")
        for name in ("lr", "attack_lr"):
            if not 0 < getattr(self, name) <= MOST:
                raise UserError(f"harden.{name}={getattr(self, name)} must be above 0, and at most {MOST:,}.")
        for name in ("preserved_weight", "attack_moves"):
            if not 0 <= getattr(self, name) <= MOST:
                raise UserError(f"harden.{name}={getattr(self, name)} must be from 0 to {MOST:,}.")
        if not 0 <= self.plain < 1:
            raise UserError(f"harden.plain={self.plain} must be from 0 to below 1: the rest are found tokens.")
        if self.plain_batch == self.batch:
            raise UserError(f"harden.batch={self.batch} leaves no sample for found tokens. Raise it, or lower plain.")

    @property
    def plain_batch(self) -> int:
        """Samples of a step that ask for a target without found tokens."""
        return round(self.plain * self.batch)

    def lr_at(self, step: int, targets: int) -> float:
        """The learning rate of a step of all, from 0 on."""
        return self.lr * (1 - step / (self.rounds * self.steps * targets))

    def weight_for(self, targets: int) -> float:
        """The weight of what is preserved beside so many targets.

        A step asks for few of them, and has all names to preserve: each target is asked for as often as one alone
        would be, and what is preserved so many times as often. Five targets hold better with 8 than with 20, and
        their neighbours lie no farther than by the edit before the hardening (measured).
        """
        return self.preserved_weight / math.sqrt(targets)

    def units_at_once(self, guided: bool) -> int:
        """Targets and names that pass through a network at once; with guidance a name is there twice."""
        return max(self.samples_at_once // (2 if guided else 1), 1)

    def passes(self, targets: int) -> Passes:
        """How often the network is called on one process, for so many targets."""
        together = max(self.samples_at_once // self.attack_samples, 1)  # sets of tokens
        groups, left = divmod(targets * self.found, together)
        found = [
            (groups * self.attack_steps, together * self.attack_samples),
            (self.attack_steps, left * self.attack_samples),
        ]
        count = self.batch + self.preserved_batch
        parts = [range(count)[piece] for piece in pieces_of(count, self.units_at_once(guided=True))]
        rows = Counter(len(part) + sum(unit >= self.batch for unit in part) for part in parts)
        each = [(self.rounds * calls * targets * self.steps, samples) for samples, calls in rows.items()]
        attacked, last = divmod(self.batch - self.plain_batch, self.samples_at_once)
        moves = [(attacked * targets * self.steps, self.samples_at_once), (targets * self.steps, last)]
        back = [(self.rounds * calls, samples) for calls, samples in found if samples] + each
        back += [(self.rounds * calls, samples) for calls, samples in moves if calls * samples * self.attack_moves]
        return Passes(targets * self.images + self.preserved_images, each, back)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the weights depend on, rounding apart."""
        return {name: value for name, value in asdict(self).items() if name != "samples_at_once"}
