"""Stage 2: a LoRA per concept learns to make the image stop attending to the target.

Legend: N samples, C concepts of a step, I images of a step, P prompts, T tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_pl.concepts.concept import Concept
from mace_pl.files.identity import hash_files, identity
from mace_pl.images.protocols import RunData
from mace_pl.methods.lora import ConceptLoRAs, stream
from mace_pl.methods.losses import importance_density, masked_attention_norm
from mace_pl.models.backbone import Backbone
from mace_pl.stages.refine import Texts
from mace_pl.training.sharding import share_of


@dataclass(frozen=True)
class Objective:
    """How a step is sampled and what it minimises.

    Attributes:
        seed: of image, prompt, timestep and noise, by concept, step and number.
        importance_sampling: draw timesteps from the concept-focal density ξ; off means uniform.
        squared: square the attention norm.
        guidance: the scale that a distilled network is told.
        checkpointing: run each block again in the backward pass.
        images_per_step: over how many images a step of a concept averages.
    """

    seed: int
    importance_sampling: bool = True
    squared: bool = False
    guidance: float = 7.5
    checkpointing: bool = False
    images_per_step: int = 1

    def density(self, timesteps: int) -> Tensor:
        """[timesteps] in float64, summing to one."""
        if self.importance_sampling:
            return importance_density(timesteps)
        return torch.full((timesteps,), 1 / timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class Examples:
    """What one rank trains on, encoded once; latents and masks lie on its device.

    Attributes:
        targets: the name of each concept.
        texts: the prompts of each concept.
        latents: [I, C, h, w] of a concept's images, by its number; only of this rank's concepts.
        masks: [I, 1, H, W] bool.
        density: of the timesteps.
    """

    targets: Sequence[str]
    texts: Texts
    latents: Mapping[int, Tensor]
    masks: Mapping[int, Tensor]
    density: Tensor


def training_inputs(
    data: RunData, concept: int, settings: Mapping[str, Any], model: Mapping[str, str], method: Mapping[str, Any]
) -> dict[str, str]:
    """Hashes of all inputs on which the training of a concept depends, by what they are.

    Args:
        data: the concepts, their prompts, images and masks.
        concept: its number.
        settings: of the training.
        model: fingerprints of its parts.
        method: the closed form and what it preserves, with ``attend_padding``; and whether it ``trains``.
    """
    prompts = [[c.target, c.anchor, *t] for c, t in zip(data.concepts, data.templates, strict=True)]
    others = {name: value for name, value in method.items() if name not in ("attend_padding", "trains")}
    return {
        "target": data.concepts[concept].target,
        "settings": identity(settings),
        "model": identity(model),
        "prompts of the run": identity({"prompts": prompts, "attend_padding": method["attend_padding"]}),
        "method or what it preserves": identity(others),
        "images or masks": hash_files(data.files(data.concepts[concept]) if method["trains"] else []),
    }


def encode_examples(
    backbone: Backbone,
    data: RunData,
    concepts: Sequence[Concept],
    indices: Sequence[int],
    texts: Texts,
    objective: Objective,
) -> Examples:
    """Encode the images of a rank's own concepts.

    Args:
        backbone: the model, on its device.
        data: the images and masks of a concept, by ``load(concept, size)``.
        concepts: all concepts.
        indices: the numbers of those that this rank trains.
        texts: the prompts of all concepts.
        objective: for the density of timesteps.
    """
    device = backbone.network.device
    latents, masks = {}, {}
    for c in indices:
        pixels, inside = data.load(concepts[c], backbone.image_size)
        latents[c] = backbone.encode_images(pixels).to(device)
        masks[c] = inside.bool().to(device)
    return Examples([c.target for c in concepts], texts, latents, masks, objective.density(backbone.timesteps))


def sample(
    backbone: Backbone, examples: Examples, objective: Objective, concept: int, step: int, number: int = 0
) -> dict[str, Tensor]:
    """The image of this number in a concept's step, by a random stream of its own: image, prompt, t and noise."""
    more = (number,) if number else ()
    generator = stream(objective.seed, examples.targets[concept], "step", step, *more)
    latents, texts = examples.latents[concept], examples.texts
    image = int(torch.randint(len(latents), (), generator=generator))
    prompt = int(torch.randint(len(texts.positions[concept]), (), generator=generator))
    t = torch.multinomial(examples.density, 1, generator=generator)[0].to(latents.device)
    noise = torch.randn(latents[image].shape, generator=generator).to(latents.device)
    pooled = texts.pooled[concept]
    return {
        "latents": backbone.noised(latents[image], noise, t),
        "t": t,
        "text": texts.embeddings.row(concept, prompt).to(latents.device),
        "positions": texts.positions[concept][prompt].to(latents.device),
        "mask": examples.masks[concept][image],
    } | ({} if pooled is None else {"pooled": pooled[prompt].to(latents.device)})


def attention_loss(
    backbone: Backbone,
    loras: ConceptLoRAs,
    examples: Examples,
    objective: Objective,
    concepts: Sequence[int],
    step: int,
    numbers: Sequence[int],
) -> Tensor:
    """The losses [C] of one step of C concepts over some of its images; the LoRAs stay active for the backward pass.

    Args:
        backbone: the refined model with the LoRAs in place.
        loras: all of them.
        examples: what this rank trains on.
        objective: how a step is sampled and what it minimises.
        concepts: their numbers.
        step: of each of them.
        numbers: which of the step's images; the others are another rank's.
    """
    samples = [sample(backbone, examples, objective, c, step, number) for c in concepts for number in numbers]
    x = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}

    def layer_loss(probabilities: Tensor) -> Tensor:
        return masked_attention_norm(probabilities, x["mask"], x["positions"], objective.squared)

    loras.activate([c for c in concepts for _ in numbers])
    extra = backbone.inputs(x.get("pooled"), len(samples), objective.guidance)
    losses = backbone.attention_losses(
        x["latents"], x["t"], x["text"], layer_loss, extra, checkpointing=objective.checkpointing
    )
    return losses.view(len(concepts), len(numbers)).sum(1) / objective.images_per_step


#: a batch that trains nothing; a run has one at least, or it would end before the fusion
IDLE: dict[str, Any] = {"concepts": [], "step": 0}


def schedule(
    concepts: Sequence[int], steps: int, concepts_at_once: int, done: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Batches {concepts, step}: a group of concepts for all its steps that are left, then the next group.

    Args:
        concepts: the numbers of those that a rank trains.
        steps: of each.
        concepts_at_once: how many make a group.
        done: the steps that an interrupted run has finished, by concept.
    """
    return [
        {"concepts": left, "step": step}
        for start in range(0, len(concepts), concepts_at_once)
        for step in range(steps)
        if (left := [c for c in concepts[start : start + concepts_at_once] if done.get(c, 0) <= step])
    ]


def rank_schedule(
    data: RunData, rank: int, world: int, concepts_at_once: int, done: Mapping[int, int]
) -> list[dict[str, Any]]:
    """A rank's batches, as many as the rank with most has: Lightning's ranks go from batch to batch together.

    Args:
        data: the concepts and their steps.
        rank: whose they are.
        world: how many ranks there are.
        concepts_at_once: as in :func:`schedule`.
        done: likewise.
    """
    shares = [share_of(r, world, len(data.concepts), data.images_per_step) for r in range(world)]
    schedules = [schedule(share.concepts, data.steps_per_concept, concepts_at_once, done) for share in shares]
    longest = max([1, *(len(batches) for batches in schedules)])
    return schedules[rank] + [IDLE] * (longest - len(schedules[rank]))


MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state beside the step


@dataclass(frozen=True)
class ConceptState:
    """A concept in training, so that an interrupted run resumes from it.

    Attributes:
        steps: how many are done.
        losses: of each of them.
        tensors: the LoRA's A and B as ``0``, ``1``, …, trained or not (an eigenvector that is computed again may differ
            in the last bit), and the optimizer's moments as ``0.exp_avg``, ….
    """

    steps: int
    losses: Sequence[float]
    tensors: Mapping[str, Tensor]


def state_of(
    loras: ConceptLoRAs, optimizer: torch.optim.Optimizer, concept: int, losses: Sequence[float]
) -> ConceptState:
    """What :func:`restore_state` needs of a concept."""
    tensors: dict[str, Tensor] = {}
    for i, parameter in enumerate(loras.tensors_of(concept)):
        tensors[f"{i}"] = parameter
        if parameter in optimizer.state:  # the values of the last layer reach no loss and are never stepped
            tensors |= {f"{i}.{m}": optimizer.state[parameter][m] for m in MOMENTS}
    return ConceptState(len(losses), list(losses), tensors)


def restore_state(loras: ConceptLoRAs, optimizer: torch.optim.Optimizer, concept: int, state: ConceptState) -> None:
    """Put a concept's LoRA and the optimizer's moments back."""
    for i, parameter in enumerate(loras.tensors_of(concept)):
        parameter.data.copy_(state.tensors[f"{i}"])
        moments = {m: state.tensors[f"{i}.{m}"] for m in MOMENTS if f"{i}.{m}" in state.tensors}
        if moments:
            step = torch.tensor(float(state.steps))
            optimizer.state[parameter] = {"step": step, **{m: t.to(parameter.device) for m, t in moments.items()}}
