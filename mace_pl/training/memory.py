"""How much memory a step takes, how much is free, and how many concepts fit at once.

torch reports the peak of a GPU (``torch.cuda.max_memory_allocated``) but not that of a CPU. Its profiler sees every
allocation, but gives a peak by its private timeline alone: so live bytes are counted here, on every device alike. The
one step that is measured takes 1.4 times as long (1.2 under the profiler; bundled UNet, one core).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.7  # of the free memory that training may take; kernels want room for themselves, allocators waste some
LARGEST = 16  # larger groups have not been tried


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while it is active, as long as they live.

    The same on every device, and for tensors without values, as of torch's fake mode. What a kernel takes for itself is
    not seen.

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
        storage = tensor.untyped_storage()  # one object as long as it lives
        key = id(storage)
        if storage.nbytes() == 0 or key in self.known:
            return
        size = storage.nbytes() if counted else 0

        def freed(_: Any) -> None:
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def resident(name: str) -> int:
    """Bytes of this process on Linux: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


# No allocator is set and none is advised: MALLOC_TRIM_THRESHOLD_, jemalloc and the like are set from outside, and what
# a run gains by them has not been measured since stage 2 keeps less (frozen_layers, sums on disk).


class Peak:
    """The peak of this process's memory since it was made, on Linux: what kernels and libraries take too.

    Attributes:
        before: bytes at the start, once freed memory was given back.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        self.before = resident("VmRSS")

    def bytes(self) -> int:
        """The peak, with what lay there before."""
        return resident("VmHWM")


def free_bytes(device: torch.device) -> int:
    """Memory that a process can still take on the device; in a container no more than its limit leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # psutil sees the host
    if limit.is_file() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def concepts_at_once(free: int, cost: int, concepts: int) -> int:
    """How many of a rank's concepts are trained at once: what fits, in groups of nearly equal size.

    Args:
        free: bytes that the rank may take.
        cost: bytes of one concept's step.
        concepts: how many the rank trains, at least 1.
    """
    most = min(max(int(SHARE * free // max(cost, 1)), 1), LARGEST)
    groups = -(-concepts // most)
    return -(-concepts // groups)
