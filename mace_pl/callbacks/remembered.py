"""What a run has chosen, on disk until it is written, so that a run that resumes does not choose again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mace_pl.files.artifacts import write_json
from mace_pl.files.identity import differing, not_taken
from mace_pl.files.paths import training_folder


class Remembered:
    """One choice of a run.

    Args:
        output_dir: the run's folder.
        what: is chosen, which names the file.
        keep: whether the choice is written; not by a dry run.
    """

    def __init__(self, output_dir: str, what: str, keep: bool = True) -> None:
        self.file = training_folder(Path(output_dir)) / f"{what}.json"
        self.what, self.keep = what, keep

    def get(self, inputs: Mapping[str, Any], choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an interrupted run has chosen from the same inputs, or a new choice.

        Args:
            inputs: all that the choice depends on.
            choose: chooses.
        """
        left: Any = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None
        if left is not None:
            why = differing(left["inputs"], inputs)
            if not why:
                return dict(left[self.what])
            not_taken(self.what, self.file, why)
        chosen = choose()
        if self.keep:
            write_json(self.file, {"inputs": inputs, self.what: chosen})
        return chosen

    def forget(self) -> None:
        """The run is written, and its configuration holds the choice."""
        self.file.unlink(missing_ok=True)
