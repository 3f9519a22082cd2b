"""Values that several rows have, among billions: digests are sorted into files by their first bits, which are counted
one after another. Exact for any number; 16 bytes a row on a disk while it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

_PARTS = 64
_ROW = np.dtype([("value", np.int64), ("place", np.int64)])


class Repeated:
    """Counts digests of values. A context manager: its files are gone at the end.

    Args:
        folder: where the files may lie.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix=".repeated-", dir=folder)))
        self._files = [self._stack.enter_context((self._folder / str(n)).open("wb")) for n in range(_PARTS)]

    def __enter__(self) -> Repeated:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """int64 digests of the values of rows, and of where the rows are, in the rows' order."""
        rows = np.empty(len(values), _ROW)
        rows["value"], rows["place"] = values, places
        part = (values.view(np.uint64) % np.uint64(_PARTS)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(_PARTS + 1))
        for number, file in enumerate(self._files):
            file.write(rows[order[bounds[number] : bounds[number + 1]]].tobytes())

    def more_than(self, limits: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray, int]]:
        """For each limit: digests that more rows have, ascending; the place of the first row of each; their rows."""
        for file in self._files:
            file.flush()
        found: dict[int, list[tuple[np.ndarray, np.ndarray, int]]] = {limit: [] for limit in limits}
        for number in range(_PARTS):
            rows = np.fromfile(self._folder / str(number), _ROW)
            values, first, counts = np.unique(rows["value"], return_index=True, return_counts=True)
            for limit, parts in found.items():
                often = counts > limit
                parts.append((values[often], rows["place"][first[often]], int(counts[often].sum())))
        return {limit: _joined(parts) for limit, parts in found.items()}


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int]:
    values, places = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.argsort(values)
    return values[order], places[order], sum(rows for _, _, rows in parts)
