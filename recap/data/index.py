"""The block index of a corpus: where every 512 consecutive samples of every tar lie. One small file, memory-mapped.

    index = Index.open_or_make("runs/dc1b.index", list_shards(config))

A *block* is 512 consecutive samples of a shard: one contiguous byte range of the tar, one row group of every column
file. 1.3 billion samples make 2.6 million blocks and a file of about 60 MB, of which a trainer touches what it reads.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Shard
from recap.data.archive import Archive, Place
from recap.data.remote import open_shard
from recap.data.tars import Sample, read_keys

BLOCK = 512
"""Samples of a block; the row groups of column files are as long."""

_SECTOR = tarfile.BLOCKSIZE  # offsets are kept in units of 512 bytes: 4 bytes reach 2 TiB

PROBLEM = pa.struct([("sample", pa.int64()), ("problem", pa.string())])
LINK: list[tuple[str, pa.DataType]] = [("name", pa.string()), ("start", pa.int64()), ("end", pa.int64())]

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("damage", pa.string()),  # "" where the tar is whole
        ("first", pa.list_(pa.string())),  # key of each block's first sample
        ("start", pa.list_(pa.uint32())),  # sectors, one more than blocks
        ("count", pa.list_(pa.uint16())),
        ("problems", pa.list_(PROBLEM)),
        ("links", pa.list_(pa.struct([("block", pa.int32()), *LINK]))),
    ]
)


class Link(NamedTuple):
    """A hard link in a block: the name it has, and the bytes of the tar that hold the file it leads to."""

    block: int
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block as the reader needs it. problems: of its samples, by their number in the block."""

    shard: int
    number: int
    start: int
    end: int
    count: int
    first: str
    problems: dict[int, str]
    links: dict[str, Place]


@dataclass(slots=True)
class ShardBlocks:
    """What `scan` finds out about one tar.

    problems: (number of the sample in the shard, phrase) of keys that come back, which no block knows of itself.
    links: hard links that lead out of their block.
    """

    first: list[str] = field(default_factory=list)
    start: list[int] = field(default_factory=list)  # bytes, one more than blocks
    count: list[int] = field(default_factory=list)
    damage: Damage | None = None
    problems: list[tuple[int, str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Take in the next sample of the tar."""
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


def scan(file: IO[bytes]) -> ShardBlocks:
    """The blocks of an uncompressed tar, from its headers alone. Samples are those of `recap.data.tars.read_samples`.

    Of a damaged tar, the blocks hold what can be read; of a file that is no tar there are none.

    Raises:
        ShardError: the tar is gzipped, or comes from a server without ranges.
    """
    if not file.seekable():
        raise ShardError("index: no ranges", "the server sends whole files only: copy the tars, or data.indexed=false")
    archive, made = Archive(file), ShardBlocks()
    if archive.packed:
        raise ShardError("index: not a plain tar", "gzipped tars have no ranges: unpack them, or data.indexed=false")
    for found in read_keys(archive):
        if isinstance(found, Damage):
            made.damage = found
        else:
            made.add(found)
    return made


def scan_shard(shard: Shard) -> ShardBlocks:
    """`scan`, from wherever the shard lies. ShardError or OSError where it cannot be read."""
    try:
        with open_shard(shard) as file:
            return scan(file)
    except ShardError as error:
        raise ShardError(error.reason, f"shard {shard.id}: {shard.uri}: {error.detail}", error.transient) from error


class Index:
    """The blocks of all shards, numbered in the order of the shards. Nothing is loaded before it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        single = all(column.num_chunks == 1 for column in table.columns)
        self._table = table if single else table.combine_chunks()  # which copies
        columns = {name: self._table[name] for name in _SCHEMA.names}
        counts, starts = _flat(columns["count"]), _flat(columns["start"])
        self._count = counts.values.to_numpy(zero_copy_only=True)
        self._count = self._count[counts.first : counts.last]
        self._start = starts.values.to_numpy(zero_copy_only=True)
        self._shard_block = counts.bounds - counts.first  # of each shard, its first block; one more than shards
        self._shard_start = starts.bounds
        self._first = _flat(columns["first"])

    def __len__(self) -> int:
        return len(self._count)

    @property
    def samples(self) -> int:
        return int(self._count.sum(dtype=np.int64))

    @property
    def shards(self) -> int:
        return self._table.num_rows

    def counts(self, blocks: np.ndarray | slice) -> np.ndarray:
        """Samples of the given blocks."""
        return self._count[blocks]

    def shard(self, number: int) -> Shard:
        """A shard by its number."""
        at = {name: self._table[name][number].as_py() for name in ("id", "uri", "bytes", "etag")}
        return Shard(**at)

    def ids(self) -> Iterator[str]:
        """The ids of all shards, in order."""
        return (value.as_py() for value in self._table["id"])

    def shard_of(self, block: int) -> int:
        return int(np.searchsorted(self._shard_block, block, side="right")) - 1

    def block(self, number: int) -> Block:
        """A block by its number."""
        shard = self.shard_of(number)
        inside = number - int(self._shard_block[shard])
        at = int(self._shard_start[shard]) + inside
        start, end = (int(v) * _SECTOR for v in self._start[at : at + 2])
        first = self._first.values[self._first.first + number].as_py()
        problems, links = self._odd(shard, inside)
        return Block(shard, inside, start, end, int(self._count[number]), first, problems, links)

    def _odd(self, shard: int, block: int) -> tuple[dict[int, str], dict[str, Place]]:
        """What a block does not know of itself: almost always nothing."""
        first = block * BLOCK
        problems = _between(self._table["problems"][shard], "sample", first, first + BLOCK)
        links = _between(self._table["links"][shard], "block", block, block + 1)
        return (
            {found["sample"] - first: found["problem"] for found in problems},
            {found["name"]: (found["start"], found["end"]) for found in links},
        )

    def damaged(self) -> dict[str, str]:
        """Shards that are not whole: id -> what is wrong. Their blocks before the damage are used."""
        pairs = zip(self._table["id"].to_pylist(), self._table["damage"].to_pylist(), strict=True)
        return {name: damage for name, damage in pairs if damage}

    # --- files ----------------------------------------------------------------------------------

    @classmethod
    def of(cls, found: Iterable[tuple[Shard, ShardBlocks]]) -> Index:
        rows = [_row(shard, blocks) for shard, blocks in found]
        return cls(pa.Table.from_pylist(rows, schema=_SCHEMA))

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Memory-map an index file. UserError where it is none."""
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"data: {path} is not a block index ({error}). Delete it: it is made again.") from error
        if not table.schema.equals(_SCHEMA):
            raise UserError(f"data: {path} is not a block index of this version. Delete it: it is made again.")
        return cls(table)

    def save(self, path: str | Path) -> None:
        """Write the index file; whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}")
        with made.open("wb") as file:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                writer.write_table(self._table)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)

    @classmethod
    def open_or_make(cls, path: str | Path | None, shards: list[Shard], threads: int = 8) -> Index:
        """The index of exactly these shards: from the file where it holds them, else scanned (and saved at `path`).

        Raises:
            UserError: the file is of other shards, or a shard changed since it was indexed.
            ShardError: a shard is not a plain tar.
        """
        if path is not None and Path(path).exists():
            index = cls.open(path)
            index.check(shards, path)
            return index
        with ThreadPoolExecutor(threads) as pool:
            index = cls.of(zip(shards, pool.map(scan_shard, shards), strict=True))
        if path is None:
            return index
        index.save(path)
        return cls.open(path)

    def check(self, shards: list[Shard], path: Any = "the index") -> None:
        """UserError unless the index is of these shards as they are now."""
        ours = dict(
            zip(
                self._table["id"].to_pylist(),
                zip(self._table["bytes"].to_pylist(), self._table["etag"].to_pylist(), strict=True),
                strict=True,
            )
        )
        if missing := [s.id for s in shards if s.id not in ours]:
            raise UserError(
                f"data: {path} lacks {len(missing):,} of {len(shards):,} shards (first: {missing[0]}). Delete it: it "
                "is made again."
            )
        changed = [s.id for s in shards if s.bytes and (s.bytes, s.etag) != ours[s.id]]
        if changed:
            raise UserError(
                f"data: {len(changed):,} shards changed since {path} was made (first: {changed[0]}). Delete it: it is "
                "made again."
            )
        if len(ours) != len(shards):
            raise UserError(
                f"data: {path} holds {len(ours):,} shards, data.shards names {len(shards):,}. Give it another path."
            )


@dataclass(frozen=True)
class _Flat:
    """A list column as one run of values and the bounds of its rows."""

    values: pa.Array
    bounds: np.ndarray

    @property
    def first(self) -> int:
        return int(self.bounds[0])

    @property
    def last(self) -> int:
        return int(self.bounds[-1])


def _flat(column: pa.ChunkedArray) -> _Flat:
    lists = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return _Flat(lists.values, lists.offsets.to_numpy(zero_copy_only=True))


def _between(found: pa.ListScalar, name: str, first: int, last: int) -> list[dict[str, Any]]:
    """The entries of a sorted list whose `name` is in [first, last)."""
    numbers = found.values.field(name).to_numpy(zero_copy_only=True)
    start, end = np.searchsorted(numbers, [first, last])
    return found.values.slice(start, end - start).to_pylist()


def _row(shard: Shard, blocks: ShardBlocks) -> dict[str, Any]:
    starts = [start // _SECTOR for start in blocks.start]
    damage = f"{blocks.damage.reason} ({blocks.damage.detail})" if blocks.damage else ""
    return {
        "id": shard.id, "uri": shard.uri, "bytes": shard.bytes, "etag": shard.etag, "damage": damage,
        "first": blocks.first, "start": starts, "count": blocks.count,
        "problems": [{"sample": number, "problem": problem} for number, problem in blocks.problems],
        "links": [link._asdict() for link in blocks.links],
    }  # fmt: skip
