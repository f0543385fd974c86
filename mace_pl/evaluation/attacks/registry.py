"""The attacks by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.probes import completion, image, noise
from mace_pl.evaluation.attacks.texts import direction, free_tokens, printable
from mace_pl.evaluation.attacks.trial import Attack

ATTACKS: Mapping[str, Attack] = {
    "free_tokens": free_tokens,
    "printable": printable,
    "direction": direction,
    "noise": noise,
    "completion": completion,
    "image": image,
}


def check_attacks(names: Sequence[str], setting: str) -> None:
    """Refuse an attack that is not there, or is named twice.

    Raises:
        UserError: naming those that there are.
    """
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise UserError(f"{setting}: {unknown[0]!r} is no attack. Choose among {', '.join(ATTACKS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"{setting}={list(names)} names an attack twice. Name each once.")
