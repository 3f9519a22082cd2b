"""The expected size of a column on disk, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpc.operator import Shard


def total_size_in_words(size: float, what: str, shards: Sequence[Shard]) -> str:
    """The size of a column with `size` bytes for each sample: for all samples of the shards where their number is
    known, else for a billion.

    >>> said_in_total(8192, "images", [])
    '8.2 TB for a billion images'
    """
    counts = [shard.expected for shard in shards]
    if counts and None not in counts:
        count = sum(c for c in counts if c is not None)
        return f"{_bytes(size * count)} for these {count:,} {what}"
    return f"{_bytes(size * 1e9)} for a billion {what}"


def _bytes(size: float) -> str:
    thousands = min(int(math.log10(max(size, 1))) // 3, 5)
    return f"{size / 1000**thousands:,.1f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[thousands]}"
