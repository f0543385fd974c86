"""Presets: settings by the family of a model and by the memory of a card. A user's own settings always win."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mace_pl.errors import UserError
from mace_pl.files.tables import read_yaml
from mace_pl.models.facts import facts_of
from mace_pl.training.memory import LARGEST

TABLE = Path(__file__).with_name("presets.yaml")
CARDS = (8, 12, 16, 24)  # GiB of the cards that most people have; larger ones hold every family as it is
SPARE, SHARE = 1.0, 0.8  # GiB that driver and kernels take; the part of what is left that is planned with
BATCHES = (8, 4, 2, 1)  # images at once


@dataclass(frozen=True)
class Preset:
    """What is taken.

    Attributes:
        family: one of the table.
        read: whether it was read from the model's files; else the user has named it.
        card: GiB that the card holds; None without one.
        settings: by dotted name.
        says: what the memory comes to, in words; empty without a card.
        image: size in pixels and scheduler of the model's own files, in words.
    """

    family: str
    read: bool
    card: float | None
    settings: Mapping[str, Any]
    says: str
    image: str

    def lines(self, final: Mapping[str, Any]) -> list[str]:
        """What was taken, where the settings are ``final`` in the end, by dotted name; nothing where nobody asked."""
        where = "read from the model" if self.read else "as named"
        card = "no card" if self.card is None else f"a card of {self.card:g} GB"
        taken = [f"{name}={value}" for name, value in self.settings.items() if final[name] == value]
        own = [f"{name}={final[name]}" for name, value in self.settings.items() if final[name] != value]
        if self.read and self.card is None and not taken:
            return []
        said = [f"Preset {self.family} ({where}), {card}: {', '.join(taken) or 'nothing is changed'}; {self.image}"]
        said += [f"Your own settings stay: {', '.join(own)}"] if own else []
        return said + ([self.says] if self.says else [])


def preset_of(given: str | None, model: Mapping[str, Any], accelerator: str = "auto") -> Preset | None:
    """The preset of a run; None where nothing asks for one.

    Args:
        given: ``sd15``, or ``sd15:8`` for a card of 8 GB; when None, read from model and machine: what its family
            always wants, and what the card of a GPU does.
        model: its settings ``pretrained`` and ``revision``.
        accelerator: of the Trainer; on a CPU no card is looked at.

    Raises:
        UserError: no such preset, or one of another family than the model's.
    """
    table: Any = read_yaml(TABLE, "preset")
    name, card = named(given, list(table))
    card = card or card_of(accelerator)
    facts = facts_of(str(model.get("pretrained")), model.get("revision"))
    if name is not None and facts.family not in (None, name):
        raise UserError(
            f"preset={given}: the files of model.pretrained={model['pretrained']} are of {facts.family}. Leave the "
            f"preset out, or give {facts.family}."
        )
    family = name or facts.family
    if family is None:
        return None
    entry = table[family]
    own = {**entry.get("always", {}), **(entry.get("named", {}) if name else {})}
    if name is None and card is None and not own:
        return None
    by_memory, says = fitting(family, entry["memory"], facts.side, card) if card is not None else ({}, "")
    size = facts.pixels * (facts.side or entry["memory"]["side"])
    image = f"images of {size} pixels, {facts.scheduler or 'the scheduler'} of the model"
    return Preset(family, name is None, card, {**own, **by_memory}, says, image)


def named(given: str | None, families: list[str]) -> tuple[str | None, float | None]:
    """The family and the card of ``--preset``.

    Raises:
        UserError: there is no such family, or no such card.
    """
    if given is None:
        return None, None
    name, _, card = given.partition(":")
    with contextlib.suppress(ValueError):
        size = float(card) if card else None
        if name in families and (size is None or 0 < size < float("inf")):
            return name, size
    sizes = ", ".join(str(size) for size in CARDS)
    raise UserError(
        f"preset={given} does not exist. Choose from {', '.join(families)}, with what a card holds in GB behind it "
        f"({sizes} or another number) as in sd15:8; leave it out to have it read from model and machine."
    )


def card_of(accelerator: str) -> float | None:
    """GiB of this machine's first GPU, as it is sold; None where the run uses none."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return float(round(torch.cuda.get_device_properties(0).total_memory / 2**30))


def fitting(family: str, memory: Mapping[str, Any], side: int | None, card: float) -> tuple[dict[str, Any], str]:
    """What makes a run fit on a card: of ways to save, the first that suffices; nothing where all fits as it is.

    Args:
        family: for the line that is said.
        memory: its entry of the table.
        side: of the model's latents.
        card: GiB.
    """
    scale = ((side or memory["side"]) / memory["side"]) ** 2  # of pixels; a fused attention keeps no more
    rest = card - SPARE - memory["weights"]
    free = SHARE * rest
    image, steps = ({name: scale * size for name, size in memory[part].items()} for part in ("image", "step"))
    one = max(image.values())  # those that are generated at once are decoded one by one
    by = f"not measured on this card: {memory['weights']:.3g} GB of weights"
    if rest < one or free < min(steps.values()):
        return {}, f"{family} does not fit into {card:g} GB ({by}, {one:.2g} GB for an image): take a larger card."
    way = next((name for name, size in steps.items() if size <= free), "both")
    found: dict[str, Any] = {} if way == "plain" else {"model.gradient_checkpointing": True}
    found |= {"trainer.precision": "bf16-mixed"} if way == "both" else {}
    batch = next((size for size in BATCHES if size * image["pass"] <= free), 1)
    found |= {} if batch == BATCHES[0] else {"data.images_per_batch": batch}
    concepts = min(max(int(free // steps[way]), 1), LARGEST)
    return found, (
        f"Memory, {by}, {steps[way]:.2g} GB for a step of one concept ({concepts} at once), {one:.2g} GB for an image "
        f"({batch} at once)."
    )
