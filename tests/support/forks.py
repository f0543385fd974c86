"""Commands in real processes that need not import torch and diffusers again: they are forked off one that has.

``multiprocessing``'s fork server is that process; there is one in each process of pytest, once a test asks for it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "erase.py"
#: what takes seconds to import; nothing of ours, which a test may want to see imported
LIBRARIES = ["lightning.pytorch", "diffusers.loaders", "transformers.models.clip.modeling_clip", "peft", "torchmetrics"]
LIBRARIES += ["diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "jsonargparse", "rich.table"]

Output = tuple[str, str]


class Forked:
    """A command that runs: ``python script args``, with the variables of this process and ``env``.

    It leads a process group of its own, which a test may kill.
    """

    def __init__(
        self, script: Path, args: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.args = [str(script), *args]
        self._folder = tempfile.TemporaryDirectory()
        files = (str(Path(self._folder.name) / "out"), str(Path(self._folder.name) / "err"))
        self._files: Output = files
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        given = {**os.environ, **(env or {})}
        self.process = context.Process(target=command, args=(self.args, given, str(cwd or Path.cwd()), files))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """How it ended, None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """By SIGKILL, and with it whatever it has started; nothing where it has ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()
        self._folder.cleanup()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """How it ended and what it said; one that is not done in time is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.join()
        with self._folder:
            out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in self._files)
        return subprocess.CompletedProcess(self.args, self.process.exitcode or 0, out, err)


def forked(
    script: Path, args: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command to its end, as ``subprocess.run`` would run it."""
    return Forked(script, args, env, cwd).wait()


def ranks(script: Path, args: Sequence[str], count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """The same command as each rank of a run on this machine, as Lightning's launcher starts them; all to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    shared |= {"NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    started = [Forked(script, args, shared | {"LOCAL_RANK": str(rank)}) for rank in range(count)]
    return [one.wait() for one in started]


def command(args: Sequence[str], env: Mapping[str, str], cwd: str, files: Output) -> None:
    """What the forked process does: it becomes the command."""
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    if "OMP_NUM_THREADS" in env:  # which torch, imported already, does not read any more
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    os.chdir(cwd)
    sys.argv, sys.path = list(args), [str(Path(args[0]).parent), str(ROOT), *sys.path]
    runpy.run_path(args[0], run_name="__main__")
