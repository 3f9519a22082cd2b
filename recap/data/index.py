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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from hpc.errors import ShardError, UserError
from hpc.operator import Shard
from recap.data.remote import open_shard
from recap.data.tars import split_name

BLOCK = 512
"""Samples of a block; the row groups of column files are as long."""

_SECTOR = tarfile.BLOCKSIZE  # offsets are kept in units of 512 bytes: 4 bytes reach 2 TiB

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
    ]
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block as the reader needs it."""

    shard: int
    number: int
    start: int
    end: int
    count: int
    first: str


@dataclass(frozen=True, slots=True)
class ShardBlocks:
    """What `scan` finds out about one tar."""

    first: list[str]
    start: list[int]  # bytes, one more than blocks
    count: list[int]
    damage: str = ""


def scan(file: IO[bytes], size: int) -> ShardBlocks:
    """The blocks of an uncompressed tar, from its headers alone. At damage the blocks before it are kept.

    Samples are grouped as `recap.data.tars.read_samples` groups them; a test holds the two against each other.

    Raises:
        ShardError: the file is no plain tar, so that ranges of it cannot be read.
    """
    first: list[str] = []
    start: list[int] = []
    count: list[int] = []
    key, extensions, end, damage = "", set[str](), 0, ""
    try:
        mode: Any = "r:" if file.seekable() else "r|"  # with seeks, only headers are read
        tar = tarfile.open(fileobj=file, mode=mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - below
    except tarfile.TarError as error:
        raise ShardError("index: not a plain tar", f"{error}; gzipped tars have no ranges: unpack them") from error
    with tar:
        try:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                after = info.offset_data + -(-info.size // _SECTOR) * _SECTOR if info.isreg() else info.offset_data
                if size and after > size:
                    damage = "tar: ends in the middle of a member"
                    break
                if info.isdir() or info.type not in tarfile.SUPPORTED_TYPES:
                    continue
                found, extension = split_name(info.name)
                if not found:
                    continue
                if found != key or extension in extensions:
                    if not count or count[-1] == BLOCK:
                        first.append(found)
                        start.append(info.offset)
                        count.append(0)
                    count[-1] += 1
                    key, extensions = found, set()
                extensions.add(extension)
                end = after
        except (tarfile.TarError, EOFError) as error:
            damage = f"tar: {error}"
    return ShardBlocks(first, [*start, end] if start else [], count, damage)


def scan_shard(shard: Shard) -> ShardBlocks:
    """`scan`, from wherever the shard lies. ShardError or OSError where it cannot be read."""
    with open_shard(shard) as file:
        return scan(file, shard.bytes)


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
        return Block(shard, inside, start, end, int(self._count[number]), first)

    def damaged(self) -> dict[str, str]:
        """Shards that are not whole: id -> what is wrong. Their blocks before the damage are used."""
        pairs = zip(self._table["id"].to_pylist(), self._table["damage"].to_pylist())
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
            index = cls.of(zip(shards, pool.map(scan_shard, shards)))
        if path is None:
            return index
        index.save(path)
        return cls.open(path)

    def check(self, shards: list[Shard], path: Any = "the index") -> None:
        """UserError unless the index is of these shards as they are now."""
        ours = dict(
            zip(self._table["id"].to_pylist(), zip(self._table["bytes"].to_pylist(), self._table["etag"].to_pylist()))
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


def _row(shard: Shard, blocks: ShardBlocks) -> dict[str, Any]:
    starts = [start // _SECTOR for start in blocks.start]
    return {
        "id": shard.id, "uri": shard.uri, "bytes": shard.bytes, "etag": shard.etag, "damage": blocks.damage,
        "first": blocks.first, "start": starts, "count": blocks.count,
    }  # fmt: skip
