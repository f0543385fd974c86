"""How much memory a step takes, how much is free, and how many concepts fit side by side."""

from __future__ import annotations

import ctypes
import platform
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.7  # of the free memory that training may take; kernels want room for themselves, allocators waste some
LARGEST = 16  # larger groups have not been tried
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
USUAL = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65536}  # what glibc begins with
UNKNOWN = 4  # concepts side by side where the system does not say what is free


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while it is active, as long as they live.

    The same on every device. What a kernel takes for itself is not seen.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it has made."""
        for tensor in tree_leaves((args, kwargs)):
            self.add(tensor, counted=False)  # it was there before
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.add(tensor, counted=True)
        return result

    def add(self, tensor: Any, counted: bool) -> None:
        """Count the tensor's storage until it is freed, unless it is known."""
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes() if counted else 0

        def freed(_: Any) -> None:
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process can still take on the device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = Path("/proc/meminfo")
    if not found.is_file():
        return None
    line = next(line for line in found.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # of a container
    if limit.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within the context glibc keeps freed memory for the next allocation; elsewhere nothing changes.

    It gives large blocks back to the system otherwise, which clears every page again at the next step: a step at the
    shapes of SD 1.4 takes 8 % longer so (measured, two CPU cores).
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def side_by_side(free: int | None, cost: int, concepts: int) -> int:
    """How many of a process's concepts are trained at once: what fits, in groups of nearly equal size.

    Args:
        free: bytes that the process may take, or None where that is unknown.
        cost: bytes of one concept's step.
        concepts: how many the process trains, at least 1.
    """
    fit = UNKNOWN if free is None else int(SHARE * free // max(cost, 1))
    most = min(max(fit, 1), LARGEST)
    groups = -(-concepts // most)
    return -(-concepts // groups)
