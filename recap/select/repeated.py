"""Finds values that several rows have, among billions of rows: digests of values are partitioned into files, which are
counted one after another. Exact for any number; takes 16 bytes a row on a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recap.select.parts import Partitions

_ROW = np.dtype([("value", np.int64), ("place", np.int64)])

RepeatedValues = tuple[np.ndarray, np.ndarray, int]
"""(digests of values that too many rows have, int64 ascending; the place of each one's first row, int64; how many rows
have any of them). A place is a digest of shard and key."""

NO_VALUES: RepeatedValues = (np.empty(0, np.int64), np.empty(0, np.int64), 0)


class Repeated:
    """Counts the rows of each value. A context manager: its files are removed at the end.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._parts = Partitions(folder, _ROW)

    def __enter__(self) -> Repeated:
        return self

    def __exit__(self, *exception: object) -> None:
        self._parts.__exit__(*exception)

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """Add rows, in order. values: digests of their values, places: digests of shard and key; int64 [rows] each."""
        rows = np.empty(len(values), _ROW)
        rows["value"], rows["place"] = values, places
        self._parts.add(rows, values)

    def more_than(self, limits: Sequence[int]) -> dict[int, RepeatedValues]:
        """By limit: the values that more rows have."""
        found: dict[int, list[RepeatedValues]] = {limit: [] for limit in limits}
        for rows in self._parts:
            values, first, counts = np.unique(rows["value"], return_index=True, return_counts=True)
            for limit, parts in found.items():
                often = counts > limit
                parts.append((values[often], rows["place"][first[often]], int(counts[often].sum())))
        return {limit: merged(parts) for limit, parts in found.items()}


def merged(parts: Sequence[RepeatedValues]) -> RepeatedValues:
    """The values found in several parts, as one."""
    values, places = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.argsort(values)
    return values[order], places[order], sum(rows for _, _, rows in parts)
