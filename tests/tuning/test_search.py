"""The search: seeded, resumed after a kill, by several processes, and cut short where few seeds say no."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.forks import Forked

from mace_pl.errors import UserError
from mace_pl.tuning.measure import Scores
from mace_pl.tuning.search import Search

SPACE = {"refine.identity": (1e-3, 1e3), "fuse.identity": (1e-2, 1e2)}
FIRST = {"refine.identity": 1.0, "fuse.identity": 1.0}
GoesOn = Callable[[Scores], bool]


def score(weights: Mapping[str, float], goes_on: GoesOn) -> Scores | None:
    """Erases by one weight and preserves by the other."""
    found = Scores(min(weights["refine.identity"] / 10, 1.0), min(weights["fuse.identity"] / 10, 1.0))
    return found if goes_on(found) else None


def found(search: Search) -> list[tuple[str, dict[str, float]]]:
    return [(trial.state.name, trial.params) for trial in search.of("COMPLETE", "PRUNED")]


def search(folder: Path, trials: int, seed: int = 1, score: object = score) -> Search:
    made = Search(folder / "study.sqlite3", SPACE, seed, "inputs")
    made.run(trials, score, FIRST)  # type: ignore[arg-type]
    return made


def test_a_search_repeats_and_its_seed_counts(tmp_path: Path) -> None:
    one, same, other = (found(search(tmp_path / name, 14, seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same and one != other
    assert one[0] == ("COMPLETE", FIRST)
    assert {state for state, _ in one} == {"COMPLETE", "PRUNED"}


def test_a_killed_search_resumes_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = found(search(tmp_path / "whole", 12))
    worker = Forked(Path(__file__).with_name("search_worker.py"), [str(tmp_path / "killed")])
    waiting = tmp_path / "killed" / "waiting"
    try:
        while not waiting.exists():
            assert worker.poll() is None
            time.sleep(0.05)  # until the worker is in the middle of its sixth trial
    finally:
        worker.kill()
    assert worker.poll() == -signal.SIGKILL
    resumed = search(tmp_path / "killed", 12)
    assert found(resumed) == whole
    assert len(resumed.of("FAIL")) == 1 and not resumed.of("RUNNING")


def test_processes_share_a_search(tmp_path: Path) -> None:
    def also_elsewhere(weights: Mapping[str, float], goes_on: GoesOn) -> Scores | None:
        if len(one.of("RUNNING")) < 2:
            search(tmp_path, len(one.of("COMPLETE", "PRUNED")) + 1)  # another process while this trial runs
        return score(weights, goes_on)

    one = Search(tmp_path / "study.sqlite3", SPACE, 1, "inputs")
    one.run(6, also_elsewhere, FIRST)
    tried = [tuple(sorted(trial.params.items())) for trial in one.of("COMPLETE", "PRUNED")]
    assert len(set(tried)) == len(tried) and not one.of("RUNNING")


def test_another_search_is_not_continued(tmp_path: Path) -> None:
    search(tmp_path, 1)
    with pytest.raises(UserError, match="another run, judge, prompts or ranges"):
        Search(tmp_path / "study.sqlite3", SPACE, 1, "other inputs")


def test_a_search_without_a_trial_gives_way_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "study.sqlite3"
    Search(file, SPACE, 1, "inputs")  # as a command leaves it that fails before its first trial
    Search(file, SPACE, 1, "other inputs")
    with pytest.raises(UserError, match=r"study: .*broken\.sqlite3 cannot be read .*Give another --study"):
        (tmp_path / "broken.sqlite3").write_bytes(b"no database " * 100)
        Search(tmp_path / "broken.sqlite3", SPACE, 1, "inputs")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 8] + bytes(len(whole) - len(whole) // 8))
    with pytest.raises(UserError, match="cannot be read"):
        Search(file, SPACE, 1, "other inputs")


def test_a_study_lies_where_its_path_says(tmp_path: Path) -> None:
    """In a folder whose name means something in a URL."""
    folder = tmp_path / "50%20of? a#b & {c}"
    search(folder, 1)
    assert (folder / "study.sqlite3").is_file() and [file.name for file in tmp_path.iterdir()] == [folder.name]
