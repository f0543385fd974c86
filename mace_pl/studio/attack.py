"""One attack on the edit of the page: free tokens, optimised until the edited model explains an image of the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from mace_pl.concepts.templates import IMAGE_TEMPLATE
from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.texts import free_tokens
from mace_pl.evaluation.attacks.trial import Strengths, Trial
from mace_pl.methods.lora import stream
from mace_pl.models.pipeline import image_latents
from mace_pl.models.sampling import generate
from mace_pl.studio.asked import Asked
from mace_pl.studio.session import Studio
from mace_pl.studio.turns import Progress, counted

SEED = 2024  # that of ``attack``, which finds the same tokens where steps, guidance and image are the same
MOST_TOKEN_STEPS = 200


@dataclass(frozen=True)
class Attacked:
    """Images of one target and seed.

    Attributes:
        original: by the original model, which the attack is shown.
        before: by the edited model, of the plain prompt.
        after: by the edited model, of the tokens that were found and the plain prompt.
    """

    original: Image.Image
    before: Image.Image
    after: Image.Image


@torch.no_grad()
def attack(
    studio: Studio,
    asked: Asked,
    target: str,
    who: str,
    progress: Progress | None = None,
    number: int = 0,
    strengths: Strengths = Strengths(),  # noqa: B008 - frozen
) -> Attacked:
    """Try to bring a target back from the edit that is set.

    Args:
        studio: the run.
        asked: what the user has set, of which the first seed is used; not the prompt, which is the target's plain one.
        target: one that is ticked.
        who: the user.
        progress: called after each step, of denoising or of optimising.
        number: of the request, counted by the user's browser.
        strengths: how hard it tries.

    Raises:
        Cancelled: the user has cancelled, or asked for another attack.
        UserError: what is asked for cannot be.
    """
    asked.check()
    if target not in asked.strengths:
        raise UserError(f"attack: {target} is left out, so that there is nothing to bring back. Tick it first.")
    if strengths.token_steps > MOST_TOKEN_STEPS:
        raise UserError(f"attack: token_steps={strengths.token_steps} must be at most {MOST_TOKEN_STEPS}.")
    kinds = {concept["target"]: concept.get("kind", "object") for concept in studio.base.run.concepts}
    template, seed, pipeline = IMAGE_TEMPLATE[kinds[target]], asked.seeds[0], studio.base.pipeline
    with studio.turns.turn(who, "attack", number) as check:
        step = counted(check, progress, 3 * asked.steps + strengths.token_steps)

        def made() -> Image.Image:
            settings = (asked.steps, asked.guidance, 1)
            return generate(pipeline, [template.replace("{}", target)], [seed], *settings, on_step=step)[0]

        original = made()
        latents, random = image_latents(pipeline, [original]), stream(SEED, target, "attack", seed)
        with studio.edited(asked.strengths):
            before = made()
            # these tokens are found by the edited model alone, so that the one pipeline is enough
            models = (pipeline, pipeline, target, template, (), latents, seed, random)
            (after,) = free_tokens(Trial(*models, asked.steps, asked.guidance, strengths, step))
    return Attacked(original, before, after)
