"""Samples into rows, rows onto ranks: a pure function of the lengths, so that every rank knows the whole plan."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Samples (by number) of each row, longest first: best fit decreasing, which keeps within a few per cent of full.

    capacity: tokens of a row; 0: one sample a row. Rows come longest first.

    >>> pack([5, 4, 3, 2, 2], 8)
    [[0, 2], [1, 3, 4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not capacity:
        return [[i] for i in order]
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
    filled = sorted(range(len(rows)), key=lambda number: (free[number], number))
    return [rows[number] for number in filled]


def deal(rows: list[list[int]], at_once: int, rank: int, world: int) -> list[list[list[int]]]:
    """This rank's forward passes: lists of up to `at_once` rows of similar length. Equally many on every rank; the last
    ones may be empty."""
    passes = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    each = -(-len(passes) // world)
    mine = [passes[turn * world + _seat(turn, rank, world)] for turn in range(each) if _has(passes, turn, rank, world)]
    return mine + [[] for _ in range(each - len(mine))]


def _seat(turn: int, rank: int, world: int) -> int:
    """Forth and back, so that no rank always gets the longest rows."""
    return rank if turn % 2 == 0 else world - 1 - rank


def _has(passes: Sequence[object], turn: int, rank: int, world: int) -> bool:
    return turn * world + _seat(turn, rank, world) < len(passes)
