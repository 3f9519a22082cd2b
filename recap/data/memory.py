"""Bounds on memory, in bytes: what decodes at the same time (an image of 100 megapixels takes up to 2.1 GB while it
does), and what a machine has.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

FREE = 64 << 20  # bytes that any image may take without asking: about 5 megapixels
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Memory:
    """Bytes that are lent, first come, first served; who wants more than there are gets all of them."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lent(self, wanted: int) -> Iterator[None]:
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


_DECODING = Memory(2 << 30)  # of this process's threads


@contextlib.contextmanager
def to_decode(cost: int) -> Iterator[None]:
    """Room for a decoding thread of this process: an image that costs more than FREE waits until 2 GiB hold it, too."""
    with _DECODING.lent(cost) if cost > FREE else contextlib.nullcontext():
        yield


def of_rank() -> int:
    """Bytes that one of the ranks here may use (LOCAL_WORLD_SIZE says how many there are)."""
    return of_machine() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def of_machine() -> int:
    """Bytes of this machine, or less where a cgroup or Slurm says so."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max"
            found.append(int(Path(limit).read_text()))
    with contextlib.suppress(ValueError):
        found.append(int(os.environ.get("SLURM_MEM_PER_NODE", "")) << 20)
    return min(value for value in found if value > 0)
