"""Whether a name asks for another one: as a plural, with an article, in a style, or within more words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from mace_pl.concepts.templates import IMAGE_TEMPLATE

#: what stands between a name and a style
IN_STYLE_OF = IMAGE_TEMPLATE["style"].removeprefix("a photo").removesuffix("{}")  # " in the style of "


def asks_for(name: str, words: Collection[str]) -> bool:
    """Whether a name asks for one of some words: as it is, with an article, as a plural, or in a style.

    Args:
        name: as "a ship", "ships" or "ship in the style of Monet".
        words: targets and words for them.
    """
    thing, _, style = name.casefold().partition(IN_STYLE_OF)
    for article in ("a ", "an ", "the "):
        thing = thing.removeprefix(article)
    asked = {word.casefold() + ending for word in words for ending in ("", "s")}
    return thing in asked or style in asked


def holding(names: Sequence[str], words: Collection[str]) -> list[tuple[str, str]]:
    """The names that hold one of some words as a whole, or its plural, each with that word; "warship" holds no ship."""
    return [
        (name, word)
        for name in names
        for word in words
        if re.search(rf"\b{re.escape(word)}(s|es)?\b", name, re.IGNORECASE) and not asks_for(name, words)
    ]
