"""Values that several rows have, among billions: digests are sorted into files, which are counted one after another.
Exact for any number; 16 bytes a row on a disk while it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recap.select.parts import Parts

_ROW = np.dtype([("value", np.int64), ("place", np.int64)])

Often = tuple[np.ndarray, np.ndarray, int]
"""int64 values that too many rows have, ascending; the place of each one's first row; how many rows have them."""

NONE: Often = (np.empty(0, np.int64), np.empty(0, np.int64), 0)


class Repeated:
    """Counts digests of values. A context manager: its files are gone at the end.

    Args:
        folder: where the files may lie.
    """

    def __init__(self, folder: Path) -> None:
        self._parts = Parts(folder, _ROW)

    def __enter__(self) -> Repeated:
        return self

    def __exit__(self, *exception: object) -> None:
        self._parts.__exit__(*exception)

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """int64 digests of the values of rows, and of where the rows are, in the rows' order."""
        rows = np.empty(len(values), _ROW)
        rows["value"], rows["place"] = values, places
        self._parts.add(rows, values)

    def more_than(self, limits: Sequence[int]) -> dict[int, Often]:
        """For each limit: the values that more rows have."""
        found: dict[int, list[Often]] = {limit: [] for limit in limits}
        for rows in self._parts:
            values, first, counts = np.unique(rows["value"], return_index=True, return_counts=True)
            for limit, parts in found.items():
                often = counts > limit
                parts.append((values[often], rows["place"][first[often]], int(counts[often].sum())))
        return {limit: joined(parts) for limit, parts in found.items()}


def joined(parts: Sequence[Often]) -> Often:
    """What was found in parts, as one."""
    values, places = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.argsort(values)
    return values[order], places[order], sum(rows for _, _, rows in parts)
