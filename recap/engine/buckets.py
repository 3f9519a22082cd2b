"""Rows that wait for a pass, by the width that they are filled up to.

A row's width comes from its own length alone and every pass has the same number of rows, so that a text never depends
on its batch neighbours.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)

STEP = 32  # tokens between two widths


def width_of(tokens: int) -> int:
    """The width that so many tokens are filled up to."""
    return -(-tokens // STEP) * STEP


class Buckets(Generic[Key, Row]):
    """Rows by key: the width, and what else a pass has one of.

    Args:
        batch: rows of a pass.
        patience: rows that may come after one before its pass is run although it is not full.
        wait_s: seconds without a new row after which a pass is run although it is not full.
    """

    def __init__(self, batch: int, patience: int, wait_s: float) -> None:
        self.batch, self._patience, self._wait_s = batch, patience, wait_s
        self._rows: dict[Key, deque[tuple[int, Row]]] = {}
        self._number, self._last = 0, time.monotonic()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def add(self, key: Key, row: Row) -> None:
        self._number += 1
        self._last = time.monotonic()
        self._rows.setdefault(key, deque()).append((self._number, row))

    def ready(self, pressing: bool = False, more: bool = False) -> Key | None:
        """The key of the pass to run now, None where it is better to wait.

        Args:
            pressing: whether no row can come before a pass is run.
            more: whether rows are being made: then a pass that is not full waits for them.
        """
        if not self._rows:
            return None
        oldest = min(self._rows, key=lambda key: self._rows[key][0][0])
        if self._number - self._rows[oldest][0][0] > self._patience:
            return oldest
        fullest = max(self._rows, key=lambda key: len(self._rows[key]))
        if len(self._rows[fullest]) >= self.batch or pressing:
            return fullest
        return fullest if not more and time.monotonic() - self._last >= self._wait_s else None

    def take(self, key: Key) -> list[Row]:
        """The next rows of a pass."""
        rows = self._rows[key]
        found = [rows.popleft()[1] for _ in range(min(self.batch, len(rows)))]
        if not rows:
            del self._rows[key]
        return found

    def clear(self) -> None:
        self._rows.clear()
