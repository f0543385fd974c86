"""Sentences with slots about a name."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from mace_pl.errors import UserError

ABOUT = ("a", "the", "name")  # slots that the name fills


def with_article(name: str) -> str:
    """The name after "a" or "an"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def filled(
    shape: str, name: str, slots: Mapping[str, Sequence[str]], rng: random.Random, source: str = "sentences.json"
) -> str:
    """The sentence of a shape about ``name``.

    Args:
        shape: its words; ``{a}`` is "a ship" or "an airplane", ``{the}`` is "the ship", ``{name}`` the bare name, every
            other slot one of its fillers.
        name: what it is about; nothing where it is empty.
        slots: fillers by the name of their slot.
        rng: chooses among them.
        source: where the shape comes from, for messages.

    Raises:
        UserError: a slot without fillers.
    """
    about = {"a": with_article(name), "the": f"the {name}", "name": name} if name else dict.fromkeys(ABOUT, "")

    def filler(match: re.Match[str]) -> str:
        slot = match[1]
        if slot not in about and not slots.get(slot):
            raise UserError(f"{source}: {shape!r} has the slot {slot!r} without fillers.")
        return about[slot] if slot in about else rng.choice(slots[slot])

    return re.sub(r"\{(\w+)\}", filler, shape)
