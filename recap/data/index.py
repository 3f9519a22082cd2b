"""The block index of a corpus: where every 512 consecutive samples of every shard lie. One small file, memory-mapped.

    index = Index.open_or_make("runs/dc1b.index", list_shards(config))

A *block* is 512 consecutive samples of a shard: one contiguous byte range of a tar or rows of a table, one row group of
every column file. 1.3 billion samples make 2.6 million blocks and a file of about 60 MB, of which a trainer touches
what it reads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import ShardError, UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap.data.archive import Place
from recap.data.blocks import BLOCK, LINK_FIELDS, PROBLEM_TYPE, Block, ShardBlocks
from recap.data.kind import NOTHING, Wanted
from recap.data.kinds import kind_of
from recap.data.noted_blocks import NotedBlocks

log = logging.getLogger(__name__)

_SECTOR = tarfile.BLOCKSIZE  # offsets are kept in units of 512 bytes: 4 bytes reach 2 TiB

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("damage", pa.string()),  # "" where the shard is whole
        ("first", pa.list_(pa.string())),  # key of each block's first sample
        ("start", pa.list_(pa.uint32())),  # sectors, one more than blocks
        ("count", pa.list_(pa.uint16())),
        ("problems", pa.list_(PROBLEM_TYPE)),
        ("links", pa.list_(pa.struct([("block", pa.int32()), *LINK_FIELDS]))),
        ("kind", pa.string()),  # tar, parquet, ...
        ("origin", pa.list_(pa.int64())),  # where the kind finds each block; [] for tars
        ("skip", pa.list_(pa.uint32())),  # rows there that belong to earlier blocks
    ]
)
_VERSION = 2
_VERSION_1 = pa.schema([field for field in _SCHEMA if field.name not in ("kind", "origin", "skip")])  # tars alone


def scan_shard(shard: Shard, wanted: Wanted = NOTHING) -> ShardBlocks:
    """A shard's blocks, from wherever it lies. ShardError or OSError where it cannot be read."""
    try:
        return kind_of(shard.uri).scan(shard, wanted)
    except ShardError as error:
        raise ShardError(error.reason, f"shard {shard.id}: {shard.uri}: {error.detail}", error.transient) from error


def noted_or_scanned(
    shards: Sequence[Shard], threads: int, wanted: Wanted, noted: NotedBlocks
) -> Iterator[tuple[Shard, ShardBlocks]]:
    """The blocks of shards in order: noted ones, the others by scans. Says how many were which."""
    scanned = 0

    def found(shard: Shard) -> tuple[ShardBlocks, bool]:
        known = noted.find(shard, wanted)
        return (scan_shard(shard, wanted), True) if known is None else (known, False)

    with ThreadPoolExecutor(threads) as pool:
        for shard, (blocks, read) in zip(shards, pool.map(found, shards), strict=True):
            scanned += read
            yield shard, blocks
    if noted.runs:
        log.info(
            "index: the blocks of %s of %s shards were noted by %s, the others were read",
            f"{len(shards) - scanned:,}",
            f"{len(shards):,}",
            ", ".join(str(run.run.path) for run in noted.runs),
        )


class Index:
    """The blocks of all shards, numbered through in the order of the shards. The file is mapped, and read as needed."""

    selection = ""  # digest of which samples are kept, see recap.data.kept

    def __init__(self, table: pa.Table) -> None:
        single = all(column.num_chunks == 1 for column in table.columns)
        self._table = table if single else table.combine_chunks()  # this copies the table
        counts, starts = _flat(self._table["count"]), _flat(self._table["start"])
        self._count = counts.values.to_numpy(zero_copy_only=True)
        self._count = self._count[counts.first : counts.last]
        self._start = starts.values.to_numpy(zero_copy_only=True)
        self._shard_block = counts.bounds - counts.first  # of each shard, its first block; one more than shards
        self._shard_start = starts.bounds
        self._first = _flat(self._table["first"])
        self._metadata = self._table.schema.metadata or {}

    def __len__(self) -> int:
        return len(self._count)

    @property
    def samples(self) -> int:
        return int(self._count.sum(dtype=np.int64))

    @property
    def shards(self) -> int:
        return self._table.num_rows

    @property
    def bounds(self) -> np.ndarray:
        """int64 [shards + 1]: the number of each shard's first block, and the number of blocks."""
        return self._shard_block

    def counts(self, blocks: np.ndarray | slice) -> np.ndarray:
        """uint16 [blocks]: how many samples each of the given blocks has."""
        return self._count[blocks]

    @property
    def digest(self) -> str:
        """Hash of the shards' ids and of their blocks' sample counts, as stored in the file; "" where it has none."""
        return self._metadata.get(b"digest", b"").decode()

    def counted_digest(self) -> str:
        """The same hash, computed from the table."""
        made = hashlib.sha256()
        for name in self.ids():
            made.update(name.encode() + b"\0")
        made.update(np.diff(self._shard_block).astype("<i8").tobytes() + self._count.astype("<u2").tobytes())
        return made.hexdigest()[:16]

    def kind(self, shard: int) -> str:
        """The name of a shard's kind: tar, parquet, ..."""
        return str(self._table["kind"][shard].as_py()) if "kind" in self._table.column_names else "tar"

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
        problems, links = self._problems_and_links(shard, inside)
        found = (int(self._count[number]), first, problems, links)
        return Block(
            shard,
            inside,
            start,
            end,
            *found,
            *(self._optional_number(name, shard, inside) for name in ("origin", "skip")),
        )

    def _optional_number(self, name: str, shard: int, block: int) -> int:
        """A block's `origin` or `skip` (see `Block`); 0 where the shard's kind has none."""
        values = self._table[name][shard].values if name in self._table.column_names else None
        return int(values[block].as_py()) if values is not None and len(values) else 0

    def _problems_and_links(self, shard: int, block: int) -> tuple[dict[int, str], dict[str, Place]]:
        """A block's `problems` and `links` (see `Block`); nearly always both are empty."""
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
        made = cls(pa.Table.from_pylist(rows, schema=_SCHEMA))
        return cls(made._table.replace_schema_metadata(made._file_metadata()))

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Memory-map an index file of this version or the one before. UserError where it is not an index."""
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"data: {path} is not a block index ({error}). Delete it: it is made again.") from error
        version = int((table.schema.metadata or {}).get(b"version", b"1"))
        if not table.schema.equals(_VERSION_1 if version == 1 else _SCHEMA) or version > _VERSION:
            raise UserError(
                f"data: {path} is not a block index of version 1 to {_VERSION}. Delete it: it is made again."
            )
        return cls(table)

    def _file_metadata(self) -> dict[str, str]:
        return {"version": str(_VERSION), "digest": self.counted_digest()}

    def save(self, path: str | Path) -> None:
        """Write the index file; whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}")
        with made.open("wb") as file:
            schema = _SCHEMA.with_metadata(self._file_metadata())
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_table(self._table.replace_schema_metadata(schema.metadata))
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)

    @classmethod
    def open_or_make(
        cls,
        path: str | Path | None,
        shards: list[Shard],
        threads: int = 8,
        wanted: Wanted = NOTHING,
        known: Iterable[Published] = (),
    ) -> Index:
        """The index of exactly these shards: the file at `path`, or one that is made, and saved there.

        Args:
            path: None: the index is kept in memory alone.
            threads: shards that are scanned at the same time.
            wanted: says which column holds the keys, where shards are tables.
            known: runs that may have noted where the shards' blocks lie; only the other shards are scanned.

        Raises:
            UserError: the file is of other shards, or damaged, or a shard changed since it was indexed.
            ShardError: a shard cannot be read in ranges, such as a gzipped tar.
        """
        if path is not None and Path(path).exists():
            index = cls.open(path)
            index.check(shards, path)
            return index
        index = cls.of(noted_or_scanned(shards, threads, wanted, NotedBlocks(known)))
        if path is None:
            return index
        index.save(path)
        return cls.open(path)

    def check(self, shards: list[Shard], path: Any = "the index") -> None:
        """UserError unless the index is whole, and of these shards as they are now."""
        if self.digest and self.digest != self.counted_digest():
            raise UserError(f"data: {path} is damaged: it holds not what it says. Delete it: it is made again.")
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
    """A list column of an Arrow table: all values in a row, and where each row's values begin (one more than rows)."""

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
        "links": [link._asdict() for link in blocks.links], "kind": kind_of(shard.uri).name,
        "origin": blocks.origin, "skip": blocks.skip,
    }  # fmt: skip
