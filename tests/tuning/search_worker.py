"""A search that waits in the middle of its sixth trial, to be killed."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tuning.test_search import FIRST, SPACE, GoesOn, Search, score

from mace_pl.tuning.measure import Scores

folder = Path(sys.argv[1])
made = Search(folder / "study.sqlite3", SPACE, 1, "inputs")


def waits(weights: Mapping[str, float], goes_on: GoesOn) -> Scores | None:
    if len(made.of("COMPLETE", "PRUNED")) == 5:
        (folder / "waiting").touch()
        time.sleep(600)
    return score(weights, goes_on)


made.run(12, waits, FIRST)
