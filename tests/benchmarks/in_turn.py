"""Runs benchmarks as commands, one after the other, and prints what each has printed, or why it failed, as JSON.

``python in_turn.py '{"live": ["--moves", "2"]}'``.
"""

import contextlib
import io
import json
import runpy
import sys
import traceback
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def printed(name: str, options: list[str]) -> str:
    """What a benchmark prints."""
    file = str(BENCHMARKS / f"{name}.py")
    sys.argv = [file, *options]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_path(file, run_name="__main__")
        except BaseException:  # a command that is refused exits
            return said.getvalue() + traceback.format_exc()
    return said.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(BENCHMARKS))
    given = json.loads(sys.argv[1])
    print(json.dumps({name: printed(name, options) for name, options in given.items()}))
