"""Bounds on memory, in bytes: for the images that are decoded at the same time (one of 100 megapixels takes up to
2.1 GB), and of the machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

FREE = 64 << 20  # images that take less are decoded without waiting: up to about 5 megapixels
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Memory:
    """A budget of bytes that threads reserve, first come, first served. A request for more than the total gets all."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        """Wait for `wanted` bytes, and hold them inside the `with`."""
        wanted, me = min(wanted, self._total), object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me and self._left >= wanted)
            self._waiting.popleft()
            self._left -= wanted
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()


_DECODING = Memory(2 << 30)  # for all threads of this process


@contextlib.contextmanager
def memory_to_decode(cost: int) -> Iterator[None]:
    """Reserve memory for decoding one image. Those that take more than FREE share 2 GiB in a process, and wait for it.

    Args:
        cost: `EncodedImage.cost`, bytes.
    """
    with _DECODING.reserved(cost) if cost > FREE else contextlib.nullcontext():
        yield


def rank_memory() -> int:
    """Bytes that one rank may use: the machine's, divided among its ranks (LOCAL_WORLD_SIZE)."""
    return machine_memory() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def machine_memory() -> int:
    """Bytes of this machine's memory, or less where a cgroup or Slurm grants less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max"
            found.append(int(Path(limit).read_text()))
    with contextlib.suppress(ValueError):
        found.append(int(os.environ.get("SLURM_MEM_PER_NODE", "")) << 20)
    return min(value for value in found if value > 0)
