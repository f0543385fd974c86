"""One step: which samples it has, and what it minimises.

Of a target ‖ε_θ(z, c) − ε_0(z, g)‖², with ε_0 the original, c a prompt of the target (with found tokens or without)
and g that of its anchor. Of a name to preserve ‖d(p) − (1 − 1/w) d(∅)‖², where d(p) = ε_θ(z, p) − ε_0(z, p) of its
prompt p and of the empty one: what classifier-free guidance with the scale w shows of both, for an image follows
w (ε(p) − (1 − 1/w) ε(∅)). Sources: AdvUnlearn (arXiv 2405.15234), RACE (arXiv 2405.16341) and STEREO (arXiv 2408.16807)
train against found prompts; here a LoRA alone is trained. That what is preserved is the guided prediction is measured.

Legend: N samples, T tokens of a prompt, D width of the text, C targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mace_pl.evaluation.token_attack import Text, encode_all_attacked
from mace_pl.hardening.adapter import Adapter
from mace_pl.hardening.originals import Originals
from mace_pl.hardening.settings import Hardening
from mace_pl.hardening.wording import Wording
from mace_pl.methods.lora import stream
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.training.team import Team, pieces_of


@dataclass(frozen=True)
class Samples:
    """The samples of a step.

    Attributes:
        noisy: [N, C, h, w].
        t: timesteps [N].
        text: [N, T, D] and pooled [N, P], what the edited model is asked for.
        goal: likewise, what the original is asked for.
        targets: how many ask for a target; the others are to preserve.
        share: of the error of an empty prompt that is taken off; where there is one, the second half of the others has
            the noisy latents of the first, and empty prompts.
    """

    noisy: Tensor
    t: Tensor
    text: Text
    goal: Text
    targets: int
    share: float = 0.0

    @property
    def preserved(self) -> int:
        """How many names to preserve there are."""
        return (len(self.t) - self.targets) // (2 if self.share else 1)

    def rows(self, piece: slice) -> tuple[list[int], int]:
        """The rows of some of the targets and names: these, then the empty prompts; and how many are targets."""
        units = range(self.targets + self.preserved)[piece]
        empty = [unit + self.preserved for unit in units if unit >= self.targets] if self.share else []
        return [*units, *empty], sum(unit < self.targets for unit in units)


@dataclass(frozen=True)
class Material:
    """What steps draw from.

    Attributes:
        pipeline: the model.
        wording: its prompts.
        originals: images.
        settings: of the hardening.
        seed: of the hardening.
        team: the processes that share its sets of tokens and the samples of its steps.
    """

    pipeline: Pipeline
    wording: Wording
    originals: Originals
    settings: Hardening
    seed: int
    team: Team = Team()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Attacked:
    """A sample with found tokens.

    Attributes:
        target: its number.
        found: which set of tokens of this target.
        prompt: what stands behind the tokens.
        goal: what the original is asked for in its place.
        latents: [C, h, w] of an image of the target.
    """

    target: int
    found: int
    prompt: str
    goal: str
    latents: Tensor


def attacked_in(material: Material, sets: int, number: int, step: int) -> list[Attacked]:
    """The samples of a step with found tokens, by a random stream of its own; targets take turns.

    Args:
        material: what is drawn from.
        sets: how many were found of each target so far.
        number: of the round.
        step: in the round.
    """
    wording, settings, originals = material.wording, material.settings, material.originals
    generator = stream(material.seed, "hardening", "attacked", number, step)
    count, samples = settings.batch - settings.plain_batch, []
    for i in range(count):
        c = (step * count + i) % len(wording.targets)
        chosen, shown = int(torch.randint(sets, (), generator=generator)), wording.shown(c, settings.images)
        own = originals.targets[c, chosen % len(shown) :: len(shown)]
        latents = own[int(torch.randint(len(own), (), generator=generator))]
        samples.append(Attacked(c, chosen, *shown[chosen % len(shown)], latents))
    return samples


@torch.no_grad()
def samples_of(material: Material, found: Tensor, number: int, step: int, guidance: float) -> Samples:
    """The samples of a step, by a random stream of its own: images, prompts, timesteps and noise.

    Targets take turns, among the plain samples and among those with found tokens. Of what is preserved, names in a
    style have their share (``Wording.in_style``).

    Args:
        material: what is drawn from.
        found: tokens [C, S, K, D] of all rounds so far.
        number: of the round.
        step: in the round.
        guidance: classifier-free guidance scale of images.
    """
    wording, settings, originals = material.wording, material.settings, material.originals
    generator = stream(material.seed, "hardening", "step", number, step)

    def drawn(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    plain, attacked = settings.plain_batch, attacked_in(material, found.shape[1], number, step)
    turns = [(step * plain + i) % len(wording.targets) for i in range(plain)]
    latents = [originals.targets[c, drawn(originals.targets.shape[1])] for c in turns]
    pairs = [wording.plain[c][drawn(len(wording.plain[c]))] for c in turns]
    latents += [one.latents for one in attacked]
    sets, preserved = torch.stack([found[one.target, one.found] for one in attacked]), []
    every, of_styles = range(len(originals.names)), set(wording.styled)
    styled = [i for i, name in enumerate(originals.names) if name in of_styles] or every
    for i in range(settings.preserved_batch):
        shown = styled if i < wording.in_style(settings.preserved_batch) else every
        image = shown[drawn(len(shown))]
        template = wording.templates[drawn(len(wording.templates))]
        latents.append(originals.preserved[image])
        preserved.append(template.replace("{}", wording.names[originals.names[image]]))
    backbone = backbone_of(material.pipeline)
    t = torch.randint(backbone.timesteps, (len(latents),), generator=generator).to(latents[0].device)
    clean = torch.stack(latents)
    noisy = backbone.noised(clean, torch.randn(clean.shape, generator=generator).to(clean), t)
    share = backbone.empty_share(guidance)
    if share:
        own = slice(settings.batch, None)
        noisy, t, preserved = torch.cat([noisy, noisy[own]]), torch.cat([t, t[own]]), preserved + [""] * len(preserved)
    asked = [*[p for p, _ in pairs], *[g for _, g in pairs], *[one.goal for one in attacked], *preserved]
    once = list(dict.fromkeys(asked))  # the empty prompt is there many times
    places = [once.index(prompt) for prompt in asked]
    encoded = [None if part is None else part[places] for part in backbone.encode(once)]
    assert encoded[0] is not None
    with_tokens = encode_all_attacked(material.pipeline, [one.prompt for one in attacked], sets)
    text, goal = _joined(encoded[0], with_tokens[0], plain, settings)
    pooled: tuple[Tensor | None, Tensor | None] = (None, None)
    if encoded[1] is not None and with_tokens[1] is not None:
        pooled = _joined(encoded[1], with_tokens[1], plain, settings)
    return Samples(noisy, t, (text, pooled[0]), (goal, pooled[1]), settings.batch, share)


def _joined(encoded: Tensor, with_tokens: Tensor, plain: int, settings: Hardening) -> tuple[Tensor, Tensor]:
    """What is asked of the edited model and of the original, of plain prompts, goals and prompts to preserve."""
    asked, goal, same = encoded.tensor_split([plain, plain + settings.batch])
    return torch.cat([asked, with_tokens, same]), torch.cat([goal, same])


def add_gradients(
    material: Material,
    adapter: Adapter,
    samples: Samples,
    original: Mapping[str, Tensor],
    edited: Mapping[str, Tensor],
    guidance: float,
) -> tuple[float, float]:
    """Add a step's gradients to the LoRA's; returns the loss of the targets and that of what is preserved, unweighted.

    Each process does a share of the samples, and has the sums.

    Args:
        material: model and settings.
        adapter: the LoRA.
        samples: of the step.
        original: the weights of the original that the edit changes, by layer name.
        edited: these weights of the edit, which the network has.
        guidance: the scale that a distilled network is told.
    """
    backbone, settings, team = backbone_of(material.pipeline), material.settings, material.team
    count = samples.targets + samples.preserved
    size = team.size(count, settings.units_at_once(samples.share > 0))
    pieces = [(piece, *samples.rows(piece)) for piece in team.own(pieces_of(count, size))]

    def predicted(text: Text, rows: list[int]) -> Tensor:
        t, (hidden, pooled) = samples.t[rows], text
        extra = backbone.inputs(None if pooled is None else pooled[rows], len(t), guidance)
        return backbone.predict(samples.noisy[rows], t, hidden[rows], extra)

    with torch.no_grad(), adapter.off(original, edited):
        goals = [predicted(samples.goal, rows) for _, rows, _ in pieces]
    preserving = settings.weight_for(len(material.wording.targets))
    weight = torch.full((count,), preserving / settings.preserved_batch)
    weight[: samples.targets] = 1 / settings.batch
    errors = torch.zeros(count, device=samples.t.device)
    for (piece, rows, targets), goal in zip(pieces, goals, strict=True):
        units = len(range(count)[piece])
        errors_of = (predicted(samples.text, rows) - goal).flatten(1)
        preserved = errors_of[targets:units]
        if samples.share:
            preserved = preserved - samples.share * errors_of[units:]
        own = torch.cat([errors_of[:targets], preserved]).square().mean(1)
        (own * weight[piece].to(own)).sum().backward()
        errors[piece] = own.detach().float()
    team.add_up([errors, *(gradient_of(parameter) for parameter in adapter.parameters())])
    return float(errors[: samples.targets].mean()), float(errors[samples.targets :].mean())


def gradient_of(parameter: Any) -> Tensor:
    """The gradient of a parameter; zeros, which it then has, where no sample of this process reached it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    found: Tensor = parameter.grad
    return found
