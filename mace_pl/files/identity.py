"""What makes two runs the same: a hash over inputs, and never over computed numbers.

Sums differ in their last bit from one number of threads to another and from device to device; settings, texts and files
do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def identity(content: Mapping[str, Any]) -> str:
    """SHA-256 over values that JSON can hold, whatever the order of their keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names under which two descriptions differ."""
    return [name for name in expected if found.get(name) != expected[name]]
