"""What a killed process leaves of an output goes with the next run of it, and nothing else does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import checksums, leftover

from mace_pl.cli import erase_main
from mace_pl.files.artifacts import claim_output, write_json, written_aside
from mace_pl.files.leftovers import beside, clear_folder, clear_leftovers

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from mace_pl.files.artifacts import written_aside
from mace_pl.training.tensor_store import TensorStore
import torch

store = TensorStore()
store.add(torch.ones(2))
with written_aside(Path("run")) as aside:
    aside.mkdir()
    (aside / "half").write_text("written")
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_kill_leaves_goes_with_the_next_run(tmp_path: Path) -> None:
    for place in ("work", "temporary"):
        (tmp_path / place).mkdir()
    own = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(how: str) -> int:
        return subprocess.run([sys.executable, "-c", KILLED, how], env=own, cwd=tmp_path / "work").returncode

    assert run("kill") != 0
    (left,), (store,) = inside(tmp_path / "work"), inside(tmp_path / "temporary")
    assert left.startswith(".run.") and left.endswith(".partial") and store.startswith("mace-pl-")
    mine = tmp_path / "temporary" / "mace-pl-mine"
    mine.mkdir()
    assert run("finish") == 0
    assert inside(tmp_path / "work") == ["run"] and inside(tmp_path / "temporary") == ["mace-pl-mine"]


def test_files_of_others_and_of_running_processes_stay(tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    stay = [beside(output, "partial"), leftover(tmp_path / "b.json"), tmp_path / ".a.json.notes.partial"]
    digits = leftover(output)
    other = digits.with_name(digits.name.replace(digits.name.split(".")[3].split("-")[0], "0" * 8))  # another machine
    stay += [other, tmp_path / ".a.json.0123abcd.partial"]
    go = [digits, leftover(output, "old"), other.with_name(other.name.replace("partial", "old"))]
    for path in stay + go:
        path.write_text("of a killed process")
    old = time.time() - 100_000  # more than a day ago
    os.utime(go[2], (old, old))
    output.write_text("{}")
    write_json(output, {})
    assert inside(tmp_path) == sorted(["a.json", *(path.name for path in stay)])
    clear_folder(tmp_path)
    assert inside(tmp_path) == sorted(["a.json", *(path.name for path in stay if "b.json" not in path.name)])


def test_what_was_to_be_replaced_comes_back_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    with written_aside(tmp_path / "run") as aside:
        aside.mkdir()
        (aside / "whole").write_text("finished")
    before = checksums(tmp_path)
    (tmp_path / "run").rename(leftover(tmp_path / "run", "old"))
    leftover(tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run exists"):
        claim_output(tmp_path / "run", overwrite=False)
    assert checksums(tmp_path) == before and inside(tmp_path) == ["run"]
    with written_aside(tmp_path / "run") as aside:
        aside.mkdir()
    assert inside(tmp_path) == ["run"] and inside(tmp_path / "run") == [".written.json"]


def test_predict_resumes_in_a_folder_that_a_kill_left(toy_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    leftover(folder / "manifest.json").write_text("{")  # not even the manifest was whole
    args = ["predict", "--model.pretrained", str(toy_pipeline), "--model.output", str(folder), "--model.steps", "1"]
    args += ["--data.names", "[ship]", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    erase_main(args)
    image, manifest = whole = inside(folder)
    assert image.endswith(".png") and manifest == "manifest.json"
    (folder / image).rename(leftover(folder / image))
    erase_main(args)
    assert inside(folder) == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_a_process_left_goes_though_nobody_waited_for_it_or_another_has_its_number(tmp_path: Path) -> None:
    own = beside(tmp_path / "file", "partial")  # of this process, which is writing it
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and its number stays its own
    killed, before = (own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{pid}-")) for pid in (child, os.getppid()))
    for path in (own, killed, before):
        path.write_text("half")
    os.utime(before, (1e9, 1e9))  # before the process that has this number now began
    clear_leftovers(tmp_path / "file")
    assert inside(tmp_path) == [own.name]
    os.waitpid(child, 0)
