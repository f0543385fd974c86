"""The words that images are generated of, the names that judges choose among, and what counts for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mace_pl.evaluation.erasure_scores import Groups
from mace_pl.models.protocols import Tokenizer


@dataclass(frozen=True)
class Words:
    """W words that images are generated of: names, then synonyms of some of them; and C classes of the judges.

    Attributes:
        names: what is scored.
        synonyms: of those names, by name; images of them are generated.
        others: further names that judges choose among.
        known: all synonyms by name, also those of which no image is generated: such a class counts as the name.
    """

    names: list[str]
    synonyms: dict[str, list[str]]
    others: list[str] = field(default_factory=list)
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """Names, then synonyms."""
        return self.names + [word for words in self.synonyms.values() for word in words]

    @property
    def classes(self) -> list[str]:
        """What judges choose among: the names, then the others."""
        return self.names + self.others

    @property
    def meaning(self) -> dict[str, str]:
        """The name that each word or class means; another class means itself."""
        synonyms = {**self.synonyms, **self.known}
        return {n: n for n in self.classes} | {w: t for t, words in synonyms.items() for w in words}

    def same(self, word: str) -> list[int]:
        """The classes that mean what a word means, by index; none where it means no class."""
        meaning = self.meaning
        wanted = meaning.get(word, word)
        return [i for i, name in enumerate(self.classes) if meaning[name] == wanted]

    def right(self) -> Tensor:
        """[W, C] bool: which classes are right for each word."""
        found = torch.zeros(len(self.all), len(self.classes), dtype=torch.bool)
        for i, word in enumerate(self.all):
            found[i, self.same(word)] = True
        return found

    def groups(self, targets: Sequence[str], nearest: Sequence[str]) -> Groups:
        """Indices of erased and preserved names, of the targets' synonyms, and of the nearest preserved names."""
        index = {word: i for i, word in enumerate(self.all)}
        return Groups(
            [index[name] for name in self.names if name in targets],
            [index[name] for name in self.names if name not in targets],
            [index[word] for target in targets for word in self.synonyms.get(target, [])],
            [index[name] for name in nearest],
        )


def neighbours(
    targets: Sequence[str],
    preserved: Sequence[str],
    target_ND: Tensor,
    preserved_MD: Tensor,
    tokenizer: Tokenizer,
    count: int,
) -> dict[str, dict[str, list[str]]]:
    """The preserved names next to each target: ``embedding``, the nearest first, and ``tokens``, those that share a
    token.

    Args:
        targets: N names.
        preserved: M names.
        target_ND: unit text embeddings of the targets.
        preserved_MD: those of the preserved names.
        tokenizer: splits names into tokens.
        count: how many of either sort.
    """
    near = (target_ND @ preserved_MD.T).argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    pieces = {name: set(tokenizer(name, add_special_tokens=False).input_ids) for name in {*targets, *preserved}}
    return {
        target: {
            "embedding": [preserved[i] for i in near[row]],
            "tokens": [name for name in preserved if pieces[name] & pieces[target]][:count],
        }
        for row, target in enumerate(targets)
    }
