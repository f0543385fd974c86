"""What a user sets on the page, and what can be set there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mace_pl.errors import UserError

MOST_IMAGES = 16
MOST_STEPS = 100
MOST_GUIDANCE = 15


@dataclass(frozen=True)
class Asked:
    """What a user has set on the page: a value that no other user sees.

    Attributes:
        prompt: of all images.
        seeds: one per image.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        strengths: in [0, 1] by target; a target that is not named is left out of the edit.
    """

    prompt: str
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    strengths: Mapping[str, float]

    def check(self) -> None:
        """Refuse what cannot be generated.

        Raises:
            UserError: no seeds, too many of them, or steps, guidance or a strength out of range.
        """
        if not 1 <= len(self.seeds) <= MOST_IMAGES:
            raise UserError(f"seeds: give 1 to {MOST_IMAGES} of them, not {len(self.seeds)}.")
        if any(not 0 <= seed < 2**63 for seed in self.seeds):
            raise UserError(f"seeds={list(self.seeds)} must be whole numbers from 0 to 2^63 − 1.")
        check_settings(self.steps, self.guidance)
        for target, strength in self.strengths.items():
            if not 0 <= strength <= 1:
                raise UserError(f"strengths: {target}={strength} must be between 0 (preserved) and 1 (erased).")


def check_settings(steps: int, guidance: float) -> None:
    """Refuse what the sliders of the page do not have.

    Args:
        steps: denoising steps.
        guidance: classifier-free guidance scale.

    Raises:
        UserError: one is out of its range.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps={steps} must be between 1 and {MOST_STEPS}.")
    if not 1 <= guidance <= MOST_GUIDANCE:
        raise UserError(f"guidance={guidance:g} must be between 1 and {MOST_GUIDANCE}.")
