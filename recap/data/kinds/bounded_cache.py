"""A cache that is bounded in bytes and shared by threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Values by key; the least recently used ones are dropped. Where several threads want the same value, one makes it
    and the others wait.

    Args:
        most: bytes of all values together. A single value may be larger.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def get_or_make(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of a key, made by `make` where it is not held. size: returns a value's bytes."""
        with self._lock:
            mine = self._making.setdefault(key, Lock())
        with mine:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key][0]
            try:
                made = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._values[key] = (made, size(made))
                self._bytes += self._values[key][1]
                while self._bytes > self._most and len(self._values) > 1:
                    self._bytes -= self._values.popitem(last=False)[1][1]
            return made
