"""The toy models of the tests: the same bytes in every process, else every test draws other numbers each time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import checksums

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for hash_seed, threads in (("1", "1"), ("2", "2")):
        place = tmp_path / hash_seed
        place.mkdir()
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        environment = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths}
        command = [sys.executable, str(TESTS / "support" / "toy_worker.py"), "toys"]
        done = subprocess.run(command, cwd=place, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append({Path(name).relative_to(place).as_posix(): value for name, value in checksums(place).items()})
    assert made[0] == made[1]
    assert len([name for name in made[0] if name.endswith(".safetensors")]) > 20  # or nothing was compared
