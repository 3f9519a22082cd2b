"""Blocks: 512 consecutive samples of a shard, what trainers read at a time and columns are joined by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from hpc.operator import Damage
from recap.data.archive import Place
from recap.data.tars import Sample

BLOCK = 512
"""Samples of a block. The row groups of column files have as many rows."""

PROBLEM_TYPE = pa.struct([("sample", pa.int64()), ("problem", pa.string())])
LINK_FIELDS: list[tuple[str, pa.DataType]] = [("name", pa.string()), ("start", pa.int64()), ("end", pa.int64())]


class Link(NamedTuple):
    """A hard link out of a block. name: of its target. start, end: the bytes of the tar that hold the target."""

    block: int
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block as the reader needs it.

    shard, number: number of the shard in the index, and of the block in the shard.
    start, end: its bytes in a tar. In tables, its rows' share of the file's bytes, by which memory is estimated.
    count, first: how many samples it has, and the key of the first.
    problems: phrases such as "key: duplicate", by the sample's number in the block.
    links: where the targets of hard links lie that are in earlier blocks, by name.
    origin, skip: where other kinds than tars begin to read it (a row group, a batch's byte, a line), and how many rows
        there belong to earlier blocks; 0 in tars.
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


def block_sizes(samples: int) -> list[int]:
    """How many samples each block of a shard has, where the shard has `samples`."""
    return [min(BLOCK, samples - start) for start in range(0, samples, BLOCK)]


@dataclass(slots=True)
class ShardBlocks:
    """What a scan finds out about one shard. first, count, origin and skip have one entry a block, as in `Block`.

    start: first byte of each block, and the end of the last.
    damage: why the shard is not whole; None where it is.
    problems: (number of the sample in the shard, phrase) of duplicate and split keys.
    links: hard links that lead out of their block.
    origin, skip: empty for tars.
    ended: whether all samples of the shard were counted, and its blocks can be read alone.
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
        """Count the next sample of a tar, whose blocks are made up in order."""
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
        """Count row `number` of a table. Rows without problems may be left out, unless a block begins with them.

        Args:
            start, origin, skip: those of a block that would begin here, see `Block`.
        """
        self.problems += [(number, problem) for problem in sample.problems]
        if number % BLOCK == 0:
            self.first.append(sample.key)
            self.start.append(start)
            self.origin.append(origin)
            self.skip.append(skip)

    def close(self, rows: int, end: int) -> None:
        """To be called after all rows of a table were counted. end: the byte after the last one."""
        self.start.append(end)
        self.count = block_sizes(rows)
