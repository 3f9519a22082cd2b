"""A bound on what decodes at the same time, in bytes: an image of 100 megapixels takes up to 2.1 GB while it does."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from recap.engine.settings import CaptionerConfig


class Memory:
    """Bytes that are lent, first come, first served; who wants more than there are gets all of them."""

    @classmethod
    def of(cls, config: CaptionerConfig) -> Memory:
        return cls(int(config.decode_memory_gb * 2**30))

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
