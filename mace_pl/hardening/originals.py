"""Images by the original: of the targets, and of what is preserved. Noise is added to them in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_pl.concepts.anchors import nearest
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.wording import Wording
from mace_pl.methods.lora import stream
from mace_pl.models.pipeline import image_latents, scheduled
from mace_pl.models.protocols import Pipeline
from mace_pl.models.sampling import generate
from mace_pl.training.team import Team, pieces_of


@dataclass(frozen=True)
class Look:
    """How the images are generated.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        scheduler: of diffusers; the model's own when None.
        batch_size: images at once.
    """

    steps: int = 30
    guidance: float = 7.5
    scheduler: str | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class Originals:
    """Latents [C, h, w] of images by the original model.

    Attributes:
        targets: [targets, images, C, h, w].
        preserved: [M, C, h, w].
        names: M numbers of the names that these show, in the order of ``Wording.names``.
    """

    targets: Tensor
    preserved: Tensor
    names: Sequence[int]


def preserved_names(pipeline: Pipeline, wording: Wording, settings: Hardening, seed: int) -> list[int]:
    """Which name each image of a preserved name shows: every name in turn, in an order by the seed.

    Where there are fewer images than names, half of them show those that are nearest to a target in the text encoder:
    a hardening takes its neighbours along where nothing holds them (of a cat the dog, measured).
    """
    count, images = len(wording.names), settings.preserved_images
    order = torch.randperm(count, generator=stream(seed, "hardening", "names")).tolist()
    if images < count:
        near = nearest(pipeline, wording.names, wording.targets, images // 2)
        order = [*near, *(name for name in order if name not in near)]
    return [order[i % count] for i in range(images)]


def generate_originals(
    pipeline: Pipeline,
    wording: Wording,
    settings: Hardening,
    look: Look,
    seed: int,
    progress: Callable[[int], None] | None = None,
    team: Team = Team(),  # noqa: B008 - frozen
) -> Originals:
    """Generate the images of targets and of names to preserve.

    Args:
        pipeline: the original model.
        wording: what they show.
        settings: how many there are.
        look: how they are generated.
        seed: of their seeds; each image has one of its own.
        progress: called with the number of images done since the last call.
        team: the processes that share the batches; each image is in the same batch, however many there are.

    Returns:
        The latents, on the CPU.
    """
    names = preserved_names(pipeline, wording, settings, seed)
    asked = [wording.shown(c, settings.images) for c in range(len(wording.targets))]
    prompts = [own[i % len(own)][0] for own in asked for i in range(settings.images)]
    prompts += [wording.templates[0].replace("{}", wording.names[name]) for name in names]
    drawn = torch.randint(2**31, (len(prompts),), generator=stream(seed, "hardening", "images"))
    own = []
    with scheduled(pipeline, look.scheduler, "data.image_scheduler"):
        for batch in team.own(pieces_of(len(prompts), look.batch_size)):
            seeds = drawn[batch].tolist()
            images = generate(pipeline, prompts[batch], seeds, look.steps, look.guidance, progress=progress)
            own.append(torch.cat([image_latents(pipeline, [image]) for image in images]).cpu())
    latents = torch.cat(team.together(own)).contiguous()  # as a resumed hardening reads them: the layout rounds
    of_targets = len(wording.targets) * settings.images
    targets = latents[:of_targets].unflatten(0, (len(wording.targets), settings.images))
    return Originals(targets, latents[of_targets:], names)
