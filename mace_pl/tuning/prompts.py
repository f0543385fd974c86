"""The prompts of a search and those of its confirmation, which have none in common."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mace_pl.concepts.sentences import filled
from mace_pl.concepts.templates import TEMPLATES
from mace_pl.data.levels import ATTRIBUTES, NAME, SHAPES, Asked, asked_prompts

Part = Literal[0, 1]  # 0 are the prompts of the search, 1 those of the confirmation
Role = Literal["target", "near", "far"]
FIRST_SEED: Mapping[int, int] = {0: 10_000, 1: 20_000}  # neither those of a run's images nor those of a report
OF_TARGET, OF_OTHER = 2, 1  # prompts of each level
LARGEST = 12  # names next to the targets
#: names next to each target and others, and images of each prompt in the search and in its confirmation
DEFAULTS = {"near": 3, "far": 8, "seeds": 4, "confirm_seeds": 8}


@dataclass(frozen=True)
class Row:
    """An image that is asked for.

    Attributes:
        prompt: of it.
        seed: of it.
        name: what the original shows.
        role: what the name is to the edit.
        level: how far the prompt is from the bare name.
        pilot: whether it is of the few seeds that every trial generates.
    """

    prompt: str
    seed: int
    name: str
    role: Role
    level: str
    pilot: bool = True


def rows_of(
    roles: Mapping[str, Role], kinds: Mapping[str, str], part: Part, sentences: str | None, seeds: int, pilot: int
) -> list[Row]:
    """Every prompt of every name with every seed.

    Args:
        roles: of each name.
        kinds: of each name that is no object.
        part: of the search or of the confirmation.
        sentences: a file of sentences with slots, as ``test`` takes it; the project's own with attributes when None.
        seeds: images of each prompt.
        pilot: how many of them every trial generates.
    """
    found = []
    for name, role in roles.items():
        count = OF_TARGET if role == "target" else OF_OTHER
        for level, asked in prompts_of(name, kinds.get(name, "object"), part, sentences).items():
            first = [Row(prompt, FIRST_SEED[part], name, role, level) for prompt in asked[:count]]
            found += [replace(row, seed=row.seed + k, pilot=k < pilot) for row in first for k in range(seeds)]
    return found


def prompts_of(name: str, kind: str, part: Part, sentences: str | None) -> dict[str, list[str]]:
    """The prompts of a name by level: every other one."""
    found = {NAME: [template.replace("{}", name) for template in TEMPLATES[kind]]}
    if sentences is not None:
        asked: Sequence[Asked] = asked_prompts([name], sentences, None)
        for one in asked:
            found.setdefault(one.level, []).append(one.prompt)
    elif kind == "object":
        found[ATTRIBUTES] = [filled(shape, name, {}, random.Random(shape)) for shape in SHAPES]
    return {level: prompts[part::2] for level, prompts in found.items()}


def roles_of(targets: Sequence[str], near: Sequence[str], names: Sequence[str], far: int, seed: int) -> dict[str, Role]:
    """The targets, the names next to them, and some of the others.

    Args:
        targets: what is erased.
        near: names that are preserved, next to the targets.
        names: all that are preserved.
        far: how many of the others, drawn by ``seed``.
        seed: of the draw.
    """
    others = [name for name in names if name not in near and name not in targets]
    drawn = sorted(random.Random(f"{seed} far").sample(others, min(far, len(others))))
    roles: dict[str, Role] = dict.fromkeys(targets, "target")
    return roles | dict.fromkeys(near, "near") | dict.fromkeys(drawn, "far")


def most_images(kinds: Mapping[str, str], names: int, trials: int) -> int:
    """How many images a search by :data:`DEFAULTS` generates at most, of the original and of the confirmation too.

    Args:
        kinds: of each target.
        names: how many are preserved.
        trials: of the search.
    """
    near, far, seeds, confirm_seeds = (DEFAULTS[name] for name in ("near", "far", "seeds", "confirm_seeds"))
    next_to = min(LARGEST, 2 * near * len(kinds), names)  # by the text encoder, and by shared words

    def rows(part: Part, count: int) -> int:
        others = next_to + min(far * (1 + part), names - next_to)
        roles: dict[str, Role] = dict.fromkeys(kinds, "target")
        roles |= dict.fromkeys((f"name {i}" for i in range(others)), "far")
        return len(rows_of(roles, kinds, part, None, count, count))

    return (trials + 2) * rows(0, seeds) + 3 * rows(1, confirm_seeds)  # the original, the run, and what is taken
