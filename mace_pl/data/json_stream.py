"""Read a large JSON file one element at a time, so that memory does not grow with the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK = 1 << 16  # characters
BLANK = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


class JSONStream:
    """A window on a text stream from which JSON values are decoded one after another.

    Args:
        stream: the text; read only as far as values are asked for.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.window = ""
        self.at = 0
        self.ended = False

    def peek(self) -> str:
        """The next character that is not blank, empty at the end."""
        while True:
            blank = BLANK.match(self.window, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.window) or self.ended:
                return self.window[self.at : self.at + 1]
            self._more()

    def take(self, allowed: str) -> str:
        """The next character that is not blank, which must be one of ``allowed``.

        Raises:
            json.JSONDecodeError: it is another one.
        """
        found = self.peek()
        if not found or found not in allowed:
            raise json.JSONDecodeError(f"expected one of {allowed!r}", self.window, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whole.

        Raises:
            json.JSONDecodeError: there is none.
        """
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.window, self.at)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                if end < len(self.window) or self.ended:  # else "12" may go on as "123"
                    self.at = end
                    return value
            self._more()

    def elements(self) -> Iterator[Any]:
        """The elements of the array that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def _more(self) -> None:
        # as much again as is held, so that a long value is not decoded again for every chunk
        rest = self.window[self.at :]
        chunk = self.stream.read(max(CHUNK, len(rest)))
        self.window, self.at, self.ended = rest + chunk, 0, not chunk


def elements_of(stream: TextIO, key: str) -> Iterator[Any]:
    """The elements of the array under ``key`` of the object that a JSON file holds; all else is read and dropped.

    Raises:
        KeyError: no object, or no array under ``key``; raised after the whole file was read.
        json.JSONDecodeError: the file is no JSON.
    """
    text = JSONStream(stream)
    found = False
    if text.peek() == "{":
        text.take("{")
        more = text.peek() != "}"
        while more:
            name = text.value()
            text.take(":")
            if text.peek() != "[":
                text.value()
            elif name == key:
                found = True
                yield from text.elements()
            else:
                for _ in text.elements():
                    pass
            if text.peek() == "}":
                break
            text.take(",")
        text.take("}")
    else:
        text.value()
    if text.peek():
        raise json.JSONDecodeError("more text after the end", text.window, text.at)
    if not found:
        raise KeyError(key)
