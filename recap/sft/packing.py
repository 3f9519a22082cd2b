"""Samples into rows, rows onto ranks: a pure function of the lengths, so that every rank knows the whole plan."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int, multiple: int = 1) -> list[list[int]]:
    """Samples (by number) of each row, rows longest first.

    capacity: tokens of a row; 0: one sample a row. multiple: rows come in groups of so many (ranks x rows at once), and
    are filled evenly, so that no rank waits for another.

    >>> pack([5, 4, 3, 2, 2], 8)
    [[0, 2], [1, 3, 4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not capacity:
        return [[i] for i in order]
    rows = _best_fit(order, lengths, capacity)
    even = _even(order, lengths, -(-len(rows) // multiple) * multiple)
    sizes = [sum(lengths[i] for i in row) for row in even]
    if max(sizes, default=0) > capacity:  # rare: samples of nearly a row's length
        even, sizes = rows, [sum(lengths[i] for i in row) for row in rows]
    longest_first = sorted(range(len(even)), key=lambda number: (-sizes[number], number))
    return [even[number] for number in longest_first if even[number]]


def _best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """As few rows as best fit decreasing needs: within a few per cent of the least."""
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
    """Samples over `count` rows of nearly equal length: each, longest first, to the shortest row."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for i in order:
        size, number = heapq.heappop(heap)
        rows[number].append(i)
        heapq.heappush(heap, (size + lengths[i], number))
    return rows


def deal(rows: list[list[int]], at_once: int, rank: int, world: int) -> list[list[list[int]]]:
    """This rank's forward passes: lists of up to `at_once` rows of similar length. Equally many passes on every rank,
    of equally many rows but for one; a pass is empty only where there are fewer rows than ranks.

    >>> [deal([[0], [1], [2], [3], [4], [5]], 2, rank, 2) for rank in (0, 1)]
    [[[[0], [2]], [[4]]], [[[1]], [[3], [5]]]]
    """
    turns = -(-len(rows) // (at_once * world))
    ends = [turn * len(rows) // max(turns, 1) for turn in range(turns + 1)]
    return [rows[ends[turn] : ends[turn + 1]][_seat(turn, rank, world) :: world] for turn in range(turns)]


def _seat(turn: int, rank: int, world: int) -> int:
    """Forth and back, so that no rank always gets the longest rows."""
    return rank if turn % 2 == 0 else world - 1 - rank
