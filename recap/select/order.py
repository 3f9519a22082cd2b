"""Radix selection: the exact value at a rank among any number of values, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

_DIGIT = 16  # bits that a pass decides, with a histogram of 65,536 counts
_BITS = 64

ValueParts = Callable[[], Iterable[np.ndarray]]
"""Yields all values in float64 parts without NaN. It is called once for each pass over them."""


@dataclass
class Summary:
    """The number of values, and the smallest and largest of them."""

    count: int = 0
    least: float = np.inf
    greatest: float = -np.inf

    def add(self, part: np.ndarray) -> None:
        if len(part):
            self.count += len(part)
            self.least, self.greatest = min(self.least, float(part.min())), max(self.greatest, float(part.max()))


@dataclass
class _Search:
    """The search for one rank. prefix: the leading bits of its value that are known. below: how many values are smaller
    than any with this prefix. counts: of the next digit's values."""

    rank: int
    prefix: int = 0
    below: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class RankedValue:
    """The value at a rank, how many values are smaller, and how many are equal."""

    value: float
    below: int
    equal: int


def at_ranks(values: ValueParts, ranks: Sequence[int]) -> list[RankedValue]:
    """The values that would stand at these places (from 0) if all were sorted ascending.

    >>> at_ranks(lambda: [np.array([3.0, -1.0]), np.array([2.0, 2.0])], [0, 2])
    [RankedValue(value=-1.0, below=0, equal=1), RankedValue(value=2.0, below=1, equal=2)]
    """
    searches = [_Search(rank) for rank in ranks]
    known = 0  # bits of the prefixes
    while known < _BITS and searches:
        digit = min(_DIGIT, _BITS - known)
        groups = {search.prefix: np.zeros(1 << digit, np.int64) for search in searches}
        for part in values():
            _count(ordered(part), known, digit, groups)
        for search in searches:
            search.counts = groups[search.prefix]
            upto = np.cumsum(search.counts)
            found = int(np.searchsorted(upto, search.rank - search.below, side="right"))
            search.below += int(upto[found - 1]) if found else 0
            search.prefix = (search.prefix << digit) | found
        known += digit
    last = (1 << (_BITS % _DIGIT or _DIGIT)) - 1
    return [RankedValue(_value(s.prefix), s.below, int(s.counts[s.prefix & last])) for s in searches]


def _count(keys: np.ndarray, known: int, digit: int, groups: dict[int, np.ndarray]) -> None:
    """Add a part to the histogram of the next digit under each prefix."""
    rest = np.uint64(_BITS - known - digit)
    prefixes = keys >> np.uint64(_BITS - known) if known else np.zeros(len(keys), np.uint64)
    for prefix, counts in groups.items():
        mine = keys[prefixes == np.uint64(prefix)]
        digits, number = np.unique((mine >> rest) & np.uint64((1 << digit) - 1), return_counts=True)
        counts[digits.astype(np.int64)] += number


def ordered(values: np.ndarray) -> np.ndarray:
    """uint64 that are ordered as the float64 values are."""
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    return bits ^ np.where(bits >> np.uint64(63), np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1 << 63))


def _value(key: int) -> float:
    """The float64 of an `ordered` key."""
    bits = key ^ (1 << 63) if key >> 63 else key ^ 0xFFFFFFFFFFFFFFFF
    return float(np.array([bits], np.uint64).view(np.float64)[0])
