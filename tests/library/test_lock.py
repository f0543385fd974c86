"""One writer at a time; a killed one leaves no lock that counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_pl.errors import UserError
from mace_pl.library.lock import WRITER, writing

HELD = """
import sys, time
from pathlib import Path
from mace_pl.library.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    says = f"process {os.getpid()} on .* is writing {tmp_path}"
    with writing(tmp_path), pytest.raises(UserError, match=says), writing(tmp_path):
        pass
    assert not (tmp_path / WRITER).exists()
    with writing(tmp_path):
        assert (tmp_path / WRITER).exists()


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {other.pid} on"), writing(tmp_path):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with writing(tmp_path):
        pass
