"""What every attack is given, and how it asks for an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.evaluation.token_attack import Text
from mace_pl.models.protocols import Pipeline

MOST_WORDS = 10_000  # at once: more is a search of hours


@dataclass(frozen=True)
class Strengths:
    """How hard attacks try. Of several values each makes a candidate; a trial succeeds where one of them does.

    Args:
        tokens: free tokens, or words of a printable prompt.
        token_steps: steps in which free tokens are optimised.
        token_lr: learning rate of these, on embeddings that are scaled by their own mean size.
        token_samples: noises and timesteps in each of them.
        words: words that are tried for each place of a printable prompt, in each of its rounds.
        rounds: how often every place of a printable prompt is tried again.
        direction: multiples of the concept's direction that are added to a neutral prompt.
        noise: multiples of the sampler's noise, at least 1, which is that of DDPM.
        completion: shares of the denoising steps that the original does before the edited model takes over.
        image: share of the way back to noise from which an image of the target is denoised again.
        finetune: steps of fine-tuning on images of the target, after each of which an image is generated.
        finetune_images: how many of them, the first by the trial's seed.
        finetune_lr: learning rate.
    """

    tokens: int = 4
    token_steps: int = 40
    token_lr: float = 0.1
    token_samples: int = 4
    words: int = 64
    rounds: int = 2
    direction: Sequence[float] = (1.0, 2.0, 4.0)
    noise: Sequence[float] = (1.0, 1.2, 1.4, 1.7)
    completion: Sequence[float] = (0.25, 0.5)
    image: float = 0.75
    finetune: Sequence[int] = (5, 10, 20, 40, 80)
    finetune_images: int = 4
    finetune_lr: float = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the one that cannot be.
        """
        for name in ("tokens", "token_steps", "token_samples", "words", "rounds", "finetune_images"):
            if getattr(self, name) < 1:
                raise UserError(f"model.strengths.{name}={getattr(self, name)} must be at least 1.")
        if self.words > MOST_WORDS:
            raise UserError(f"model.strengths.words={self.words} must be at most {MOST_WORDS:,}. Raise rounds instead.")
        for name, least, most in (("direction", -inf, inf), ("noise", 1, inf), ("completion", 0, 1)):
            if not getattr(self, name) or not all(least <= value <= most for value in getattr(self, name)):
                raise UserError(
                    f"model.strengths.{name}={list(getattr(self, name))} must hold values, each from {least} to {most}."
                )
        if not 0 < self.image <= 1:
            raise UserError(f"model.strengths.image={self.image} must be above 0, and at most 1.")
        steps = list(self.finetune)
        if not steps or min(steps) < 1 or steps != sorted(set(steps)):
            raise UserError(
                f"model.strengths.finetune={steps} must be numbers of steps from 1 on that rise, as [5, 10]."
            )
        if not 0 < self.finetune_lr < inf:
            raise UserError(f"model.strengths.finetune_lr={self.finetune_lr} must be above 0, and finite.")


@dataclass(frozen=True)
class Trial:
    """One try to bring a target back.

    Attributes:
        original: the model that knows the target.
        edited: the one that is attacked.
        target: the name.
        template: a prompt with ``{}`` for a name.
        others: names that are not erased.
        latents: [1, C, h, w] of an image of the target that the original generated, with the trial's seed.
        seed: of the first noise.
        generator: for all else that is random; on the CPU, so that devices agree.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        strengths: how hard it tries.
        on_step: called after each step in which tokens are optimised or an image is denoised by the pipeline; what it
            raises ends the trial.
    """

    original: Pipeline
    edited: Pipeline
    target: str
    template: str
    others: Sequence[str]
    latents: Tensor
    seed: int
    generator: torch.Generator
    steps: int
    guidance: float
    strengths: Strengths
    on_step: Callable[[], None] | None = None

    @property
    def prompt(self) -> str:
        """The plain one."""
        return self.template.replace("{}", self.target)


Attack = Callable[[Trial], list[Image.Image]]  # the candidates of a trial


@torch.no_grad()
def generate_from(trial: Trial, text: Text) -> list[Image.Image]:
    """Images by the edited model of text embeddings, all from the trial's first noise, by the pipeline's scheduler."""
    hidden, pooled = text
    extra: dict[str, Any] = {} if pooled is None else {"pooled_prompt_embeds": pooled}
    trial.edited.set_progress_bar_config(disable=True)

    def stepped(*_: object) -> dict[str, Tensor]:
        if trial.on_step is not None:
            trial.on_step()
        return {}  # nothing is changed

    result: Any = trial.edited(
        prompt=None,  # type: ignore[arg-type]
        prompt_embeds=hidden,
        negative_prompt=[""] * len(hidden),
        num_inference_steps=trial.steps,
        guidance_scale=trial.guidance,
        generator=[torch.Generator().manual_seed(trial.seed) for _ in hidden],
        callback_on_step_end=stepped,
        **extra,
    )
    images: list[Image.Image] = result.images
    return images
