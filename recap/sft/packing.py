"""Packs samples into rows, and distributes rows over ranks. A pure function of lengths, so that every rank computes the
same plan without communication."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int, multiple: int = 1) -> list[list[int]]:
    """The samples of each row, by number; the longest row first.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row; 0: one sample a row.
        multiple: the number of rows is a multiple of this (ranks x rows at once), and rows are filled evenly, so that
            no rank waits for another.

    >>> pack([5, 4, 3, 2, 2], 8)
    [[0, 2], [1, 3, 4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not capacity:
        return [[i] for i in order]
    rows = _best_fit(order, lengths, capacity)
    even = _even(order, lengths, -(-len(rows) // multiple) * multiple)
    sizes = [sum(lengths[i] for i in row) for row in even]
    if max(sizes, default=0) > capacity:  # even filling failed: some samples are nearly as long as a row
        even, sizes = rows, [sum(lengths[i] for i in row) for row in rows]
    longest_first = sorted(range(len(even)), key=lambda number: (-sizes[number], number))
    return [even[number] for number in longest_first if even[number]]


def _best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows by best-fit decreasing, whose number is within a few per cent of the minimum."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in order:
        fits = [(room, number) for number, room in enumerate(free) if room >= lengths[i]]
        if fits:
            number = min(fits)[1]
            rows[number].append(i)
            free[number] -= lengths[i]
        else:
            rows.append([i])
            free.append(capacity - lengths[i])
    return rows


def _even(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` rows of nearly equal length: each sample, the longest first, goes to the shortest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for i in order:
        size, number = heapq.heappop(heap)
        rows[number].append(i)
        heapq.heappush(heap, (size + lengths[i], number))
    return rows


def deal(rows: list[list[int]], at_once: int, rank: int, world: int) -> list[list[list[int]]]:
    """This rank's forward passes, each a list of up to `at_once` rows of similar length.

    All ranks have the same number of passes, and numbers of rows that differ by one at most. A pass is empty only where
    there are fewer rows than ranks.

    >>> [deal([[0], [1], [2], [3], [4], [5]], 2, rank, 2) for rank in (0, 1)]
    [[[[0], [2]], [[4]]], [[[1]], [[3], [5]]]]
    """
    turns = -(-len(rows) // (at_once * world))
    ends = [turn * len(rows) // max(turns, 1) for turn in range(turns + 1)]
    return [rows[ends[turn] : ends[turn + 1]][_seat(turn, rank, world) :: world] for turn in range(turns)]


def _seat(turn: int, rank: int, world: int) -> int:
    """The place of a rank in a turn: ranks are served forwards and backwards in turn, so that none always gets the
    longest rows."""
    return rank if turn % 2 == 0 else world - 1 - rank
