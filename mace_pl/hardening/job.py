"""A whole hardening of an edit: images by the original, or those that an interrupted one has left, then the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mace_pl.files.screen import screen
from mace_pl.hardening.harden import Hardened, State, harden
from mace_pl.hardening.originals import Look, Originals, generate_originals
from mace_pl.hardening.saved import Saved
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material
from mace_pl.hardening.wording import Wording
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.training.progress import image_progress
from mace_pl.training.team import Team


@dataclass(frozen=True)
class Job:
    """A hardening.

    Attributes:
        pipeline: the original model, on its device.
        settings: of the hardening.
        wording: what it asks for.
        look: how its images are generated.
        seed: of all that is random.
        edit: what the edit was made from.
        team: the processes that do it together.
        shown: whether this process shows progress bars.
    """

    pipeline: Pipeline
    settings: Hardening
    wording: Wording
    look: Look
    seed: int
    edit: Mapping[str, Any]
    team: Team = Team()  # noqa: RUF009 - frozen
    shown: bool = False

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the weights depend on."""
        look = {name: value for name, value in asdict(self.look).items() if name != "batch_size"}
        return {
            **self.edit,
            "settings": self.settings.inputs,
            "prompts": asdict(self.wording),
            "look": look,
            "seed": self.seed,
        }

    @property
    def total(self) -> int:
        """Steps that train, and sets of tokens that are found."""
        return self.settings.rounds * len(self.wording.targets) * (self.settings.steps + self.settings.found)

    def run(
        self, edited: Mapping[str, Tensor], saved: Saved, every: int, told: Callable[[int], None] | None = None
    ) -> Hardened:
        """Harden; the network has the original's weights again when this ends.

        Args:
            edited: the weights that the edit changes, by layer name.
            saved: what an interrupted hardening left, and what this one leaves.
            every: the state is written every so many steps.
            told: called with the number of steps and sets done since the last call, those of an interrupted one first.
        """
        left = saved.read(self.team.first)
        self.team.wait()  # before the first one writes
        originals, state = left if left is not None else (self.originals(), State())
        if left is not None and self.team.first:
            done = f"{state.rounds} rounds and {state.steps} steps"
            screen().print(f"Resuming what {saved.file} holds: {done}", highlight=False)
        elif self.team.first:
            saved.write(originals, state)
        device: torch.device = backbone_of(self.pipeline).network.device
        there = Originals(originals.targets.to(device), originals.preserved.to(device), originals.names)
        material = Material(self.pipeline, self.wording, there, self.settings, self.seed, self.team)

        def save(now: State) -> None:
            if self.team.first:
                saved.write(originals, now)

        with image_progress(self.shown, "harden", self.total) as bar:

            def progress(done: int) -> None:
                bar(done)
                if told is not None:
                    told(done)

            progress(len(state.losses) + sum(len(sets) for sets in state.attacks))
            return harden(material, edited, self.look.guidance, state, save, every, progress)

    def originals(self) -> Originals:
        """The images, by the original."""
        count = len(self.wording.targets) * self.settings.images + self.settings.preserved_images
        with image_progress(self.shown, "images", count) as progress:
            parts = (self.pipeline, self.wording, self.settings, self.look, self.seed)
            return generate_originals(*parts, progress, self.team)
