"""Blocks: 512 consecutive samples of a shard, what trainers read at a time and columns are joined by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from hpc.operator import Damage
from recap.data.archive import Place
from recap.data.tars import Sample

BLOCK = 512
"""Samples of a block; the row groups of column files are as long."""

PROBLEM = pa.struct([("sample", pa.int64()), ("problem", pa.string())])
LINK: list[tuple[str, pa.DataType]] = [("name", pa.string()), ("start", pa.int64()), ("end", pa.int64())]


class Link(NamedTuple):
    """A hard link in a block: the name it has, and the bytes of the tar that hold the file it leads to."""

    block: int
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block as the reader needs it.

    start, end: its bytes in a tar; in other kinds, where the shard's bytes are shared out among its rows. origin, skip:
    where a kind finds it otherwise, and how many rows there belong to earlier blocks; 0 in tars (see the kind).
    problems: of its samples, by their number in the block.
    """

    shard: int
    number: int
    start: int
    end: int
    count: int
    first: str
    problems: dict[int, str]
    links: dict[str, Place]
    origin: int = 0
    skip: int = 0


@dataclass(slots=True)
class ShardBlocks:
    """What a scan finds out about one shard.

    problems: (number of the sample in the shard, phrase) of keys that come back, which no block knows of itself.
    links: hard links that lead out of their block. origin, skip: as in `Block`, one a block; empty for tars. ended:
    all of the shard is taken in, and its blocks can be read alone.
    """

    first: list[str] = field(default_factory=list)
    start: list[int] = field(default_factory=list)  # bytes, one more than blocks
    count: list[int] = field(default_factory=list)
    damage: Damage | None = None
    problems: list[tuple[int, str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    skip: list[int] = field(default_factory=list)
    ended: bool = field(default=False, compare=False)

    def add(self, sample: Sample) -> None:
        """Take in the next sample of the shard."""
        if not self.count or self.count[-1] == BLOCK:
            self.first.append(sample.key)
            self.start[len(self.count) :] = [sample.start]
            self.count.append(0)
        number = BLOCK * (len(self.count) - 1) + self.count[-1]
        self.problems += [(number, problem) for problem in sample.problems]
        self.links += [
            Link(len(self.count) - 1, name, *place) for name, place in sample.links if place[0] < self.start[-1]
        ]
        self.count[-1] += 1
        self.start[len(self.count) :] = [sample.end]

    def add_row(self, number: int, sample: Sample, start: int, origin: int, skip: int) -> None:
        """Take in row `number` of a table; between beginnings of blocks, rows without problems may be left out.

        Args:
            start, origin, skip: of a block that begins here, see `Block`.
        """
        self.problems += [(number, problem) for problem in sample.problems]
        if number % BLOCK == 0:
            self.first.append(sample.key)
            self.start.append(start)
            self.origin.append(origin)
            self.skip.append(skip)

    def close(self, rows: int, end: int) -> None:
        """All rows of a table are taken in, the last of which ends at byte `end`."""
        self.start.append(end)
        self.count = [min(BLOCK, rows - start) for start in range(0, rows, BLOCK)]
