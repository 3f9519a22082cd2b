"""The plan: which shards a run is made of. Written once as `plan/<hash>.parquet`, never changed.

Rows are in the order of work: by ledger bucket (so that one directory listing answers for a hundred neighbours),
then by id. A slot's *home range* is a contiguous run of rows; a growing plan is a new file that holds all rows of
the old one.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc import atomic
from hpc.errors import UserError
from hpc.ledger import bucket_of
from hpc.operator import MissingShards, Shard

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("expected", pa.int64()),
    ]
)
_ROW_GROUP = 8192


def write(directory: Path, shards: list[Shard]) -> str:
    """Write the plan unless it exists; returns its hash (12 hex digits). UserError for ids that are not unique."""
    rows = sorted(shards, key=lambda s: (bucket_of(s.id), s.id))
    for a, b in itertools.pairwise(rows):
        if a.id == b.id:
            raise UserError(f"plan: two shards have the id {a.id}: {a.uri} and {b.uri}. Name each file once.")
    digest = hashlib.sha256()
    for s in rows:
        digest.update(f"{s.id}\0{s.uri}\0{s.bytes}\0{s.etag}\0{s.expected}\n".encode())
    name = digest.hexdigest()[:12]
    target = directory / f"{name}.parquet"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        columns = {f: [getattr(s, f) for s in rows] for f in _SCHEMA.names}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, row_group_size=_ROW_GROUP, compression="zstd")
        atomic.create(target, buffer.getvalue())
    return name


class Plan:
    """A stored plan, read by ranges: an agent's memory does not grow with the number of shards."""

    def __init__(self, directory: Path, name: str) -> None:
        if not name:
            raise UserError(f"run: {directory.parent} is a training, it has no shards. Launch it again to go on.")
        self.name = name
        self._file = pq.ParquetFile(directory / f"{name}.parquet", memory_map=True)
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def shards(self, start: int = 0, stop: int | None = None) -> Iterator[Shard]:
        """Rows [start, stop) in the order of work."""
        stop = len(self) if stop is None else stop
        for group, first in enumerate(self._starts[:-1]):
            last = self._starts[group + 1]
            if last <= start or first >= stop:
                continue
            table = self._file.read_row_group(group, use_threads=False)
            low, high = max(start, first) - first, min(stop, last) - first
            for row in table.slice(low, high - low).to_pylist():
                yield Shard(**row)

    def table(self, columns: list[str]) -> pa.Table:
        return self._file.read(columns=columns)

    def ids(self) -> Iterator[str]:
        """All shard ids in the order of work, one row group in memory at a time."""
        for group in range(self._file.num_row_groups):
            yield from self._file.read_row_group(group, columns=["id"], use_threads=False)["id"].to_pylist()

    def samples(self) -> tuple[int, int]:
        """(expected samples where known, shards whose count is unknown)."""
        column = self._file.read(columns=["expected"])["expected"]
        import pyarrow.compute as pc

        return pc.sum(column).as_py() or 0, column.null_count

    def bytes(self) -> int:
        import pyarrow.compute as pc

        return pc.sum(self._file.read(columns=["bytes"])["bytes"]).as_py() or 0


def changes(old: Plan, new: list[Shard]) -> tuple[list[str], list[str]]:
    """(ids that the new plan dropped, ids whose size or etag changed). One that was missing and has come is neither."""
    wanted = {s.id: s for s in new}
    dropped, changed = [], []
    for shard in old.shards():
        now = wanted.get(shard.id)
        if now is None:
            dropped.append(shard.id)
        elif shard.etag != MissingShards.ETAG and (now.bytes, now.etag) != (shard.bytes, shard.etag):
            changed.append(shard.id)
    return dropped, changed
