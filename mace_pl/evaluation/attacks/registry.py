"""The attacks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from mace_pl.errors import UserError
from mace_pl.evaluation.attacks.finetune import finetune
from mace_pl.evaluation.attacks.probes import completion, image, noise
from mace_pl.evaluation.attacks.texts import direction, free_tokens, free_tokens_of, printable
from mace_pl.evaluation.attacks.trial import Attack, Trial
from mace_pl.evaluation.attacks.words import words_by_loss, words_by_loss_of

ATTACKS: Mapping[str, Attack] = {
    "free_tokens": free_tokens,
    "printable": printable,
    "words_by_loss": words_by_loss,
    "direction": direction,
    "noise": noise,
    "completion": completion,
    "image": image,
    "finetune": finetune,
}
#: attacks that make several trials of a target and an edit in one batch, with the same candidates but for rounding
SIDE_BY_SIDE: Mapping[str, Callable[[Sequence[Trial]], list[list[Image.Image]]]] = {
    "free_tokens": free_tokens_of,
    "words_by_loss": words_by_loss_of,
}
#: attacks whose candidates come one after the other: of these it counts which is the first that shows the target
IN_TURN = ("finetune",)


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
