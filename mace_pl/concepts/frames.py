"""Templates learnt from captions: the frames in which names of a vocabulary occur, the most frequent first."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

TOKEN = re.compile(r"\w+|[^\w\s]")
INSIDE = re.compile(r"[\w-]")  # what follows or precedes a name only where it is a part of another word
LONGEST = 200  # characters of a caption that may become a template


class Frames:
    """Counts the frames of captions that name one thing of a vocabulary, once.

    A name is found as whole words in any case, the longest one where several begin at a place. Its plural names it too,
    but leaves no frame: a template is filled with the name as it stands. A caption with several names leaves none
    either, for its frame would be a prompt of another thing.

    Args:
        vocabulary: the names.

    Attributes:
        captions: how many were read.
        framed: how many left a frame.
        spellings: by frame, without regard to case and full stop, how often it was spelled how.
        named: by frame, the first two names that it held.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.names = {name.lower() for name in vocabulary}
        self.captions = self.framed = 0
        self.spellings: dict[str, Counter[str]] = {}
        self.named: dict[str, set[str]] = {}
        self.beginnings: dict[str, list[str]] = {}  # names and plurals by their first token, the longest first
        spelled = {one for name in self.names for one in (name, *plurals(name))}
        for one in sorted(spelled, key=len, reverse=True):
            self.beginnings.setdefault(TOKEN.findall(one)[0], []).append(one)

    def add(self, captions: Iterable[str]) -> None:
        """Count the frame of each caption that has one."""
        for caption in captions:
            self.captions += 1
            found = self.frame(caption)
            if found is not None:
                frame, name = found
                self.framed += 1
                key = frame.lower().rstrip(". ")
                self.spellings.setdefault(key, Counter())[frame] += 1
                names = self.named.setdefault(key, set())
                if len(names) < 2:
                    names.add(name)

    def frame(self, caption: str) -> tuple[str, str] | None:
        """The caption with ``{}`` in place of the only name that it holds, and the name; None where there is no such.

        The article before it becomes ``a``, as the project's templates have it.
        """
        plain = " ".join(unicodedata.normalize("NFC", caption).split())
        found = self.names_in(plain)
        if len(found) != 1 or len(plain) > LONGEST or "{" in plain or "}" in plain:
            return None
        start, name = found[0]
        if name not in self.names:
            return None
        before = re.sub(r"(?i)(?<!\w)(a)n( )$", r"\1\2", plain[:start])
        return f"{before}{{}}{plain[start + len(name) :]}", name

    def names_in(self, plain: str) -> list[tuple[int, str]]:
        """The place of each name in a caption and its spelling in lower case, from left to right."""
        text = plain.lower()
        if len(text) != len(plain):  # letters such as İ, whose places would move
            text = plain
        found, end = [], 0
        for token in TOKEN.finditer(text):
            start = token.start()
            if start < end or (start and INSIDE.match(text, start - 1)):
                continue
            for name in self.beginnings.get(token[0], ()):
                stop = start + len(name)
                if text.startswith(name, start) and not INSIDE.match(text, stop):
                    found.append((start, name))
                    end = stop
                    break
        return found

    def templates(self, count: int) -> list[tuple[str, int]]:
        """The most frequent frames in their most frequent spelling, each with the number of its captions.

        Args:
            count: at most so many. A frame that held one name alone of several is none: it may belong to the name.
        """
        fewest = min(2, len(self.names))
        known = [(key, counts) for key, counts in self.spellings.items() if len(self.named[key]) >= fewest]
        known.sort(key=lambda item: -item[1].total())  # equal ones stay in the order of their first captions
        return [(counts.most_common(1)[0][0], counts.total()) for _, counts in known[:count]]


def plurals(name: str) -> list[str]:
    """The regular plural of a name's last word, in English."""
    if re.search(r"(s|x|z|ch|sh)$", name):
        return [f"{name}es"]
    if re.search(r"[^aeiou]y$", name):
        return [f"{name[:-1]}ies"]
    return [f"{name}s", f"{name}es"] if name.endswith("o") else [f"{name}s"]
