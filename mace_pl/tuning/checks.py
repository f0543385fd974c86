"""What a search is given, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mace_pl.errors import UserError
from mace_pl.files.paths import resolve


def check(counts: Mapping[str, int], spread: float) -> None:
    """Refuse numbers that are too small.

    Raises:
        UserError: naming the first.
    """
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
    if counts["pilot_seeds"] > counts["seeds"]:
        raise UserError(f"pilot_seeds={counts['pilot_seeds']} must be at most seeds={counts['seeds']}.")
    if not 1 < spread < math.inf:
        raise UserError(f"spread={spread} must be above 1: the factor by which a weight may fall and rise.")


def check_least(values: Mapping[str, float]) -> None:
    """Refuse numbers that are negative or not finite.

    Raises:
        UserError: naming the first.
    """
    for name, value in values.items():
        if not 0 <= value < 2**31:
            raise UserError(f"{name}={value} must be at least 0, and below 2^31.")


def check_places(study: Path, output: Path, sentences: str | None) -> None:
    """Refuse a study that is a file or lies in the output, and sentences that are none.

    Raises:
        UserError: naming the setting.
    """
    if study.exists() and not study.is_dir():
        raise UserError(f"study={study} is a file. Give the folder of a search, or of a new one.")
    if study.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"study={study} lies in output_dir={output}, which is written as a whole. Give a folder beside it, or "
            f"leave it out."
        )
    if sentences is not None and not resolve(sentences).is_file():
        raise UserError(f"sentences={sentences} does not exist. Give a file of sentences with slots, as test takes it.")
