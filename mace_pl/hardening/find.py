"""Free tokens that bring targets back, several sets in one batch.

Legend: C targets, S sets of each, I images of each, K tokens, D width of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

import torch
from torch import Tensor

from mace_pl.evaluation.token_attack import embedding_table, encode_all_attacked, losses_of, optimise_sets
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.step import Material, attacked_in
from mace_pl.hardening.wording import Wording
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.training.team import Team, pieces_of


def find_tokens(
    pipeline: Pipeline,
    wording: Wording,
    latents: Tensor,
    settings: Hardening,
    seed: int,
    number: int,
    progress: Callable[[int], None] | None = None,
    team: Team = Team(),  # noqa: B008 - frozen
) -> tuple[Tensor, list[list[float]]]:
    """S sets of tokens of each target against the network as it is: [C, S, K, D], and of each set the mean losses of
    the first and the last quarter of its steps.

    Each set has a random stream of its own, one of the prompts, and images of this prompt that it draws.

    Args:
        pipeline: the edited pipeline.
        wording: the prompts behind the tokens.
        latents: [C, I, ...] of the targets' images.
        settings: how tokens are found.
        seed: of the hardening.
        number: of the round.
        progress: called with the number of sets done since the last call.
        team: the processes that share the sets.
    """
    sets = [(c, s) for c in range(len(wording.targets)) for s in range(settings.found)]
    generators = [stream(seed, wording.targets[c], "hardening", "tokens", number, s) for c, s in sets]
    samples = settings.attack_samples
    numbers = [number * settings.found + s for _, s in sets]  # of each set among those of all rounds
    shown = [wording.shown(c, settings.images) for c, _ in sets]
    own_images = [latents[c][i % len(w) :: len(w)] for (c, _), i, w in zip(sets, numbers, shown, strict=True)]
    images = [some[torch.randint(len(some), (samples,), generator=g).to(latents.device)]
              for some, g in zip(own_images, generators, strict=True)]  # fmt: skip
    own: list[tuple[Tensor, list[list[float]]]] = []
    at_once = team.size(len(sets), settings.samples_at_once // samples)
    for part in team.own(pieces_of(len(sets), at_once)):
        prompts = [w[i % len(w)][0] for w, i in zip(shown[part], numbers[part], strict=True)]
        free, steps = optimise_sets(
            pipeline, prompts, torch.stack(images[part]), settings.tokens, settings.attack_steps, settings.attack_lr,
            generators[part],
        )  # fmt: skip
        few = max(1, len(steps) // 4)  # one step's loss is mostly that of its noise and timesteps
        ends = (mean_of(steps[:few]), mean_of(steps[-few:]))
        own.append((free.cpu(), [list(pair) for pair in zip(*ends, strict=True)]))
        if progress is not None:
            progress(len(prompts))
    found = team.together(own)
    losses = [pair for _, pairs in found for pair in pairs]
    return torch.cat([free for free, _ in found]).unflatten(0, (len(wording.targets), settings.found)), losses


def mean_of(steps: Sequence[Sequence[float]]) -> list[float]:
    """The mean loss of each set over some steps."""
    return [mean(losses) for losses in zip(*steps, strict=True)]


def moved_tokens(material: Material, found: Tensor, number: int, step: int) -> Tensor:
    """All tokens [C, S, K, D], those of the next step one move further against the network as it is.

    As in free adversarial training (Shafahi et al., arXiv 1904.12843) an attack goes on while the defence is trained,
    in place of one that begins anew: each set of the step goes down the gradient of the attack's loss on the image that
    the step has of it, by a length that does not depend on the gradient's.

    Args:
        material: model, images and settings.
        found: the tokens as they are.
        number: of the round.
        step: in the round.
    """
    settings, team, backbone = material.settings, material.team, backbone_of(material.pipeline)
    attacked = attacked_in(material, found.shape[1], number, step)
    latents = torch.stack([one.latents for one in attacked])
    generator = stream(material.seed, "hardening", "moves", number, step)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = torch.randint(backbone.timesteps, (len(attacked),), generator=generator).to(latents.device)
    where = torch.tensor([one.target for one in attacked]), torch.tensor([one.found for one in attacked])
    tokens = found[where]
    gradients = torch.zeros_like(tokens)
    for piece in team.own(pieces_of(len(attacked), team.size(len(attacked), settings.samples_at_once))):
        own = tokens[piece].clone().requires_grad_(True)
        with torch.enable_grad():
            text = encode_all_attacked(material.pipeline, [one.prompt for one in attacked[piece]], own)
            lost = losses_of(material.pipeline, latents[piece], text, noise[piece], t[piece])
        gradients[piece] = torch.autograd.grad(lost.sum(), [own])[0]
    team.add_up([gradients])
    lengths = gradients.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-20)
    scale = embedding_table(material.pipeline)[1]
    moves = -settings.attack_moves * scale * gradients / lengths
    return found.index_put(tuple(one.to(found.device) for one in where), moves, accumulate=True)
