"""Hardening as a function from values to a value: rounds of finding tokens and of training one LoRA against them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mace_pl.errors import UserError
from mace_pl.hardening.adapter import Adapter, attached
from mace_pl.hardening.find import find_tokens, moved_tokens
from mace_pl.hardening.step import Material, add_gradients, samples_of
from mace_pl.methods.edit import Factors
from mace_pl.models.backbone import backbone_of
from mace_pl.training.frozen_layers import frozen_layers

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state
Save = Callable[["State"], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class State:
    """A hardening that is under way, so that an interrupted one resumes from it.

    Attributes:
        rounds: those that are finished.
        steps: those of the next round that are done.
        tensors: the LoRA's parameters as ``0``, ``1``, …, Adam's moments as ``0.exp_avg``, …, and the tokens of each
            round as ``found.0``, ….
        losses: of each step, of the targets and of what is preserved.
        attacks: the mean loss of the first and the last quarter of steps of each set of tokens, by round.
        seconds: that it took so far, of the attacks and of the training.
    """

    rounds: int = 0
    steps: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Sequence[tuple[float, float]] = ()
    attacks: Sequence[Sequence[Sequence[float]]] = ()
    seconds: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Hardened:
    """What a hardening leaves.

    Attributes:
        factors: the LoRA (A [R, D], B [O, R]) by layer name, on top of the edit.
        state: how it went.
    """

    factors: Factors
    state: State


def harden(
    material: Material,
    edited: Mapping[str, Tensor],
    guidance: float,
    state: State | None = None,
    save: Save | None = None,
    every: int = 20,
    progress: Progress | None = None,
) -> Hardened:
    """Train a LoRA on top of an edit, so that found tokens lead to the anchors.

    The network is as it was when this ends.

    Args:
        material: the original model, its images, prompts and settings.
        edited: the weights that the edit changes, by layer name.
        guidance: classifier-free guidance scale of images, which a distilled network is told.
        state: of an interrupted hardening with the same inputs.
        save: called with the state when tokens were found, and every so many steps.
        every: so many.
        progress: called with the number of steps done, those that find tokens counted by set.

    Raises:
        UserError: a rank above a layer's smaller side, or losses that are not finite.
    """
    settings, backbone, targets = material.settings, backbone_of(material.pipeline), len(material.wording.targets)
    original = backbone.weights_of(edited)
    names = backbone.attention_layers(settings.layers)
    state = state or State()
    save, progress = save or _nothing, progress or _nothing
    backbone.set_key_values(edited)
    try:
        with attached(backbone, names, settings.rank, material.seed) as adapter:
            optimizer = torch.optim.Adam(adapter.parameters(), lr=settings.lr)
            restore(adapter, optimizer, state)
            with frozen_layers(backbone.network):
                for number in range(state.rounds, settings.rounds):
                    state = found_tokens(material, state, number, progress)
                    save(state_of(adapter, optimizer, state))
                    for step in range(state.steps, settings.steps * targets):
                        began = time.perf_counter()
                        optimizer.zero_grad()
                        found = found_in(state, adapter)
                        if settings.attack_moves:
                            found = moved_tokens(material, found, number, step)
                            state = with_found(state, found, settings.found)
                        samples = samples_of(material, found, number, step, guidance)
                        losses = add_gradients(material, adapter, samples, original, edited, guidance)
                        optimizer.param_groups[0]["lr"] = settings.lr_at(len(state.losses), targets)
                        optimizer.step()
                        state = _stepped(state, losses, time.perf_counter() - began)
                        progress(1)
                        if (step + 1) % every == 0:
                            save(state_of(adapter, optimizer, state))
                    state = replace(state, rounds=number + 1, steps=0)
            return Hardened(adapter.factors(), state_of(adapter, optimizer, state))
    finally:
        backbone.set_key_values(original)


def _nothing(_: Any) -> None:
    """Where nobody asks."""


def _stepped(state: State, losses: tuple[float, float], seconds: float) -> State:
    """After one more step.

    Raises:
        UserError: a loss is not finite.
    """
    if not all(loss < float("inf") for loss in losses):
        raise UserError(
            "the hardening is not finite, nothing is written. Lower harden.lr, harden.attack_lr or harden.attack_moves "
            "(of fit: model.harden.lr and so on)."
        )
    spent = (state.seconds[0], state.seconds[1] + seconds)
    return replace(state, steps=state.steps + 1, losses=[*state.losses, losses], seconds=spent)


def found_tokens(material: Material, state: State, number: int, progress: Progress) -> State:
    """With the tokens of a round, which are found where the state has none."""
    key = f"found.{number}"
    if key in state.tensors:
        return state
    began = time.perf_counter()
    args = (material.pipeline, material.wording, material.originals.targets, material.settings, material.seed)
    with torch.enable_grad():
        tokens, losses = find_tokens(*args, number, progress, material.team)
    spent = (state.seconds[0] + time.perf_counter() - began, state.seconds[1])
    attacks = [*state.attacks, losses]
    return replace(state, tensors={**state.tensors, key: tokens}, attacks=attacks, seconds=spent)


def found_in(state: State, adapter: Adapter) -> Tensor:
    """The tokens [C, S, K, D] of all rounds so far, on the network's device."""
    found = [state.tensors[f"found.{number}"] for number in range(len(state.attacks))]
    return torch.cat(found, dim=1).to(adapter.backbone.network.device)


def with_found(state: State, found: Tensor, sets: int) -> State:
    """The state with these tokens [C, S, K, D] of all rounds so far, so many sets of each."""
    parts = enumerate(found.cpu().split(sets, dim=1))
    return replace(state, tensors={**state.tensors, **{f"found.{number}": part for number, part in parts}})


def state_of(adapter: Adapter, optimizer: torch.optim.Optimizer, state: State) -> State:
    """The state with the LoRA and the optimizer's moments as they are now."""
    tensors = {name: tensor for name, tensor in state.tensors.items() if name.startswith("found.")}
    for i, parameter in enumerate(adapter.parameters()):
        tensors[f"{i}"] = parameter.detach().clone()
        if parameter in optimizer.state:
            tensors |= {f"{i}.{name}": optimizer.state[parameter][name].clone() for name in MOMENTS}
    return replace(state, tensors=tensors)


def restore(adapter: Adapter, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put the LoRA and the optimizer's moments back; those of a new state stay as they are."""
    for i, parameter in enumerate(adapter.parameters()):
        if f"{i}" in state.tensors:
            parameter.data.copy_(state.tensors[f"{i}"])
        if f"{i}.step" in state.tensors:
            own = {name: state.tensors[f"{i}.{name}"].clone() for name in MOMENTS}
            places = {name: "cpu" if name == "step" else parameter.device for name in MOMENTS}
            optimizer.state[parameter] = {name: own[name].to(places[name]) for name in MOMENTS}
