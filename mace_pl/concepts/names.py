"""Names as people write them: one spelling for what a tokenizer reads alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from mace_pl.errors import Advice, UserError

#: marks that are not seen: byte-order mark, blanks without width, soft hyphen, directions; joiners of emoji stay
INVISIBLE = dict.fromkeys([0xFEFF, 0x200B, 0x2060, 0xAD, 0x200E, 0x200F, *range(0x202A, 0x202F)])
INVISIBLE |= dict.fromkeys(range(0x2066, 0x206A))


def clean_name(given: Any, setting: str) -> str:
    """A name in composed characters (NFC), with single blanks between its words and nothing that is not seen.

    CLIP's tokenizers compose and drop blanks too, so the name means what was given; a warning says what was changed.

    Raises:
        UserError: no text, as where YAML reads a number or a truth value, or characters that are none.
    """
    if not isinstance(given, str):
        raise UserError(
            f"{setting}: {given!r} is no text: YAML reads numbers, dates, null and words such as no and on as values. "
            f'Write it in quotes, as in "1984" or "no".'
        )
    name = " ".join(unicodedata.normalize("NFC", given).translate(INVISIBLE).split())
    odd = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None)
    if odd is not None:
        raise UserError(f"{setting}: {given!r} holds the character U+{ord(odd):04X}, which no text has. Remove it.")
    if name != given and name:
        rank_zero_warn(
            f"{setting}: {given!a} is taken as {name!r}: blanks, invisible marks or composition differ.",
            category=Advice,
        )
    return name


def clean_names(given: Sequence[Any], setting: str) -> list[str]:
    """:func:`clean_name` of each."""
    return [clean_name(name, setting) for name in given]
