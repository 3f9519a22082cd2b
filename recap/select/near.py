"""Groups 64-bit hashes that differ in few bits, such as perceptual hashes of near duplicates. Exact for any number.

Where the 64 bits are cut into d + r blocks, two hashes that differ in at most d bits agree in all bits of at least r
blocks. So for each choice of r blocks, only hashes that agree in these are compared with one another (Manku et al.
2007, "Detecting near-duplicates for web crawling"). Memory does not grow with the number of rows; data that does is in
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recap.select.parts import Partitions
from recap.select.repeated import NO_VALUES, RepeatedValues, merged

BITS = 64
_ROW = np.dtype([("value", np.int64), ("place", np.int64), ("order", np.int64)])
_HASH = np.dtype([*_ROW.descr, ("rows", np.int64)])
_NUMBERED = np.dtype([("value", np.uint64), ("number", np.int64)])
_CHUNK = 1 << 20  # hashes that are looked at in one step
_FILED_NS, _COMPARED_NS = 300.0, 10.0  # about how long it takes to file a hash, and to compare a pair


class NearDuplicates:
    """Counts the rows of each group of hashes. Two hashes are in one group where a chain of hashes leads from one to
    the other in steps of at most `distance` bits.

    A context manager: its files, 24 bytes a row and 80 a hash, are removed at the end.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path, distance: int) -> None:
        self._stack, self._distance, self._count = ExitStack(), distance, 0
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix=".near-", dir=folder)))
        self._parts = self._stack.enter_context(Partitions(self._folder, _ROW))

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """Add rows, in order. values: their hashes, int64 [rows]. places: digests of shard and key, int64 [rows]."""
        rows = np.empty(len(values), _ROW)
        rows["value"], rows["place"] = values, places
        rows["order"] = np.arange(self._count, self._count + len(values))
        self._count += len(values)
        self._parts.add(rows, values)

    def more_than(self, limits: Sequence[int]) -> dict[int, RepeatedValues]:
        """By limit: the hashes in groups of more rows. The place of each is that of its group's first row."""
        hashes = self._hashes()
        groups = Groups(self._numbers("group", len(hashes)))
        for one, other in near_pairs(hashes["value"].view(np.uint64), self._distance, self._folder):
            groups.join(one, other)
        rows, first, places = (self._numbers(name, len(hashes)) for name in ("rows", "first", "places"))
        first[:] = self._count
        for part, group in groups.parts(hashes):
            np.add.at(rows, group, part["rows"])
            np.minimum.at(first, group, part["order"])
        for part, group in groups.parts(hashes):
            leads = part["order"] == first[group]
            places[group[leads]] = part["place"][leads]
        found: dict[int, list[RepeatedValues]] = {limit: [NO_VALUES] for limit in limits}
        for part, group in groups.parts(hashes):
            for limit, parts in found.items():
                often = rows[group] > limit
                parts.append((part["value"][often], places[group[often]], int(part["rows"][often].sum())))
        return {limit: merged(parts) for limit, parts in found.items()}

    def _hashes(self) -> np.ndarray:
        """One row for each hash: value, place and order of its first row, and how many rows have it."""
        count = 0
        with (self._folder / "hashes").open("wb") as file:
            for rows in self._parts:
                values, first, counts = np.unique(rows["value"], return_index=True, return_counts=True)
                part = np.empty(len(values), _HASH)
                part["value"], part["rows"] = values, counts
                part["place"], part["order"] = rows["place"][first], rows["order"][first]
                file.write(part.tobytes())
                count += len(part)
        return np.memmap(self._folder / "hashes", _HASH, "r", shape=(count,)) if count else np.empty(0, _HASH)

    def _numbers(self, name: str, count: int) -> np.ndarray:
        """int64 [count], zeros, in a file that is mapped into memory."""
        made: np.ndarray = np.memmap(self._folder / name, np.int64, "w+", shape=(count,)) if count else np.empty(0, int)
        return made


class Groups:
    """Union-find over things 0 ... n - 1: the least thing of a group stands for it.

    Args:
        parents: int64 [n] of any content, which is overwritten.
    """

    def __init__(self, parents: np.ndarray) -> None:
        self._parents = parents
        for start in range(0, len(parents), _CHUNK):
            parents[start : start + _CHUNK] = np.arange(start, min(start + _CHUNK, len(parents)))

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Unite the groups of pairs. one, other: int64 [pairs]."""
        while len(one):
            both = self.of(np.concatenate([one, other]))
            one, other = both[: len(one)], both[len(one) :]
            apart = one != other
            one, other = one[apart], other[apart]
            np.minimum.at(self._parents, np.maximum(one, other), np.minimum(one, other))

    def of(self, things: np.ndarray) -> np.ndarray:
        """int64: the group of each thing, by the least thing in it. Paths are shortened on the way (path halving)."""
        while True:
            parents = self._parents[things]
            above = self._parents[parents]
            if np.array_equal(above, parents):
                return parents
            self._parents[things] = above

    def parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(some of the rows, the groups of these things) until all are through. rows: one for each thing."""
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            yield part, self.of(np.arange(start, start + len(part)))


def near_pairs(hashes: np.ndarray, distance: int, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes that differ in at most `distance` bits: (int64 [pairs], int64 [pairs]), numbers in `hashes`. A
    pair may occur more than once.

    Args:
        hashes: uint64, all different.
        folder: for temporary files.
    """
    masks = block_masks(len(hashes), distance)
    for chosen in combinations(masks, len(masks) - distance):
        mask = np.bitwise_or.reduce(np.array(chosen))
        with Partitions(folder, _NUMBERED) as filed:
            for start in range(0, len(hashes), _CHUNK):
                values = np.ascontiguousarray(hashes[start : start + _CHUNK])
                rows = np.empty(len(values), _NUMBERED)
                rows["value"], rows["number"] = values, np.arange(start, start + len(values))
                filed.add(rows, values & mask)
            for rows in filed:
                yield from _compared(rows, mask, distance)


def _compared(rows: np.ndarray, mask: np.uint64, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Near pairs among rows that agree in the bits of `mask`. Sorted rows are compared at distance 1, 2, and so on."""
    rows = rows[np.argsort(rows["value"] & mask)]
    values, numbers, kinds = rows["value"].copy(), rows["number"].copy(), rows["value"] & mask
    left = np.arange(len(rows))
    for step in range(1, len(rows)):
        left = left[left < len(rows) - step]
        left = left[kinds[left] == kinds[left + step]]
        if not len(left):
            return
        near = left[np.bitwise_count(values[left] ^ values[left + step]) <= distance]
        yield numbers[near], numbers[near + step]


def block_masks(count: int, distance: int) -> list[np.uint64]:
    """Masks of the blocks that the 64 bits are cut into. Their number is chosen to make the search the fastest.

    Args:
        count: how many hashes there are.
        distance: bits in which near hashes may differ.
    """

    def cost(blocks: int) -> float:
        agreeing = blocks - distance
        compared = count**2 / 2 ** (1 + BITS * agreeing / blocks)
        return math.comb(blocks, agreeing) * (_FILED_NS * count + _COMPARED_NS * compared)

    blocks = min(range(distance + 1, min(distance + 6, BITS) + 1), key=cost)
    edges = [BITS * number // blocks for number in range(blocks + 1)]
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
