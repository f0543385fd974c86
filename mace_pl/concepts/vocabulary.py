"""Names among which those are chosen that an edit has to preserve: a model's own, or common words of the project's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mace_pl.concepts.concept import read_names
from mace_pl.files.tables import read_yaml
from mace_pl.models.source import Source

OWN_FILE = "names.txt"  # in the folder of a model: what it knows, a name on each line
STYLES_FILE = "styles.txt"  # likewise its styles, which count where a style is erased
OWN = f"{OWN_FILE} of the model"  # what a vocabulary is called
WITH_STYLES = f"{OWN_FILE} and {STYLES_FILE} of the model"
COMMON = "common words of the project"
#: groups of the common words that live, or are none of what an object could be
NO_THINGS = {"animals", "people", "occupations", "styles"}
WORDS = Path(__file__).with_name("vocabulary.yaml")


def own_names(source: Source, name: str = OWN_FILE) -> list[str]:
    """The names, or the styles, that a model says that it knows; none where it says nothing.

    Args:
        source: where the model is.
        name: of the file in its folder.

    Raises:
        UserError: its file holds no name, or is no text.
    """
    file = source.folder / name if source.folder is not None else None
    return read_names(str(file), f"model.pretrained: {name}") if file is not None and file.is_file() else []


def things(names: Iterable[str]) -> list[str]:
    """Those of the names that are common words for a thing, a plant, food, a vehicle or a place."""
    words: Any = read_yaml(WORDS, "vocabulary", texts=True)
    known = {name for group, own in words.items() if group not in NO_THINGS for name in own}
    return [name for name in names if name in known]


def common_words(group: str | None = None) -> list[str]:
    """Common nouns, occupations and styles, each once; those of a group of mace_pl/concepts/vocabulary.yaml alone."""
    words: Any = read_yaml(WORDS, "vocabulary", texts=True)
    return list(dict.fromkeys(name for own, names in words.items() if group in (None, own) for name in names))
