"""Partitions rows of numbers into files on a disk by a hash, so that rows with the same key can be processed
together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

PARTITIONS = 64
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # multiplier of Fibonacci hashing: neighbouring keys go to different files


class Partitions:
    """PARTITIONS files of rows. A context manager: the files are removed at the end.

    Args:
        folder: for the files.
        row: NumPy type of a row.
    """

    def __init__(self, folder: Path, row: np.dtype) -> None:
        self._stack, self._row = ExitStack(), row
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix=".parts-", dir=folder)))
        self._files = [self._stack.enter_context((self._folder / str(n)).open("wb")) for n in range(PARTITIONS)]

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, rows: np.ndarray, kinds: np.ndarray) -> None:
        """Add rows. kinds: int64 or uint64 [rows], the keys; rows with the same key come into one file, in order."""
        part = (kinds.view(np.uint64) * _SPREAD) >> np.uint64(64 - (PARTITIONS - 1).bit_length())
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(PARTITIONS + 1))
        for number, file in enumerate(self._files):
            file.write(rows[order[bounds[number] : bounds[number + 1]]].tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        """The files' rows, one file after another."""
        for file in self._files:
            file.flush()
        for number in range(PARTITIONS):
            yield np.fromfile(self._folder / str(number), self._row)
