"""Column files: one parquet file per shard, whose bytes depend on the identity and the input alone.

A file says what it was made from (`uri` and `bytes` in its schema's metadata): folders of such files have no plan.
Rows are in the shard's order, one per sample, failed ones too; row groups of 512; page checksums on. The fields are
`key`, the operator's own, then `status`, `reason`, `detail`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base import atomic
from hpc.operator import Column, Row, Shard

ROW_GROUP = 512


def schema(column: Column, identity: str) -> pa.Schema:
    """The schema of a column's files; the column's name and identity stand in its metadata."""
    fields = [("key", pa.string()), *column.fields, ("status", pa.string()), ("reason", pa.string())]
    made = pa.schema([*fields, ("detail", pa.string())])
    return made.with_metadata({"column": column.name, "identity": identity})


def made_from(target: pa.Schema, shard: Shard) -> pa.Schema:
    """The schema of one shard's file: `target` with the shard's `uri` and `bytes` in its metadata."""
    return target.with_metadata({**(target.metadata or {}), "uri": shard.uri, "bytes": str(shard.bytes)})


def to_table(rows: list[Row], target: pa.Schema) -> pa.Table:
    """Rows (one shard's, in order) as a table of `target`; fields that a row does not have are null."""
    fixed = {"key", "status", "reason", "detail"}
    data = {f.name: [getattr(r, f.name) if f.name in fixed else r.values.get(f.name) for r in rows] for f in target}
    return pa.table(data, schema=target)


def _writer(path: Path, target: pa.Schema) -> pq.ParquetWriter:
    """A parquet writer without statistics: rows are found by their row group, so that the minimum and maximum of each
    page would only cost space, a byte a sample.
    """
    return pq.ParquetWriter(
        path, target, compression="zstd", version="2.6", write_page_checksum=True, write_statistics=False
    )


def read(path: Path) -> pa.Table:
    """A whole column file, every page with its checksum."""
    return pq.ParquetFile(path, page_checksum_verification=True).read()


@dataclass(frozen=True)
class Content:
    """What a column file holds. counts: {status: n}; reasons: {"skipped: image: truncated": n}; tokens: the sum of a
    field of that name, 0 where there is none.
    """

    rows: int
    bytes: int
    sha256: str
    counts: dict[str, int]
    reasons: dict[str, int]
    tokens: int = 0


def write(path: Path, segments: Iterable[pa.Table], target: pa.Schema) -> None:
    """Write the whole column file at `path`, a name that nobody reads yet, and force it to storage.

    Row groups have 512 rows, however the rows come.
    """
    atomic.make_below(path.parent, 3)  # <column>/<identity8>/<bucket> in <run>/columns, which is there
    with _writer(path, target) as writer:
        for group in _regroup(segments, target):
            writer.write_table(group, row_group_size=ROW_GROUP)
    atomic.sync(path)


def _regroup(tables: Iterable[pa.Table], target: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP; the last may be shorter."""
    held = target.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP).combine_chunks()
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held.combine_chunks()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inspect(path: Path) -> Content:
    """Read a finished file back, every page with its checksum. Raises OSError or ArrowException where it is damaged."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    names = [name for name in ("status", "reason", "tokens") if name in file.schema_arrow.names]
    batches = [batch.select(names) for batch in file.iter_batches(batch_size=8192)]
    table = pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name) for name in names]))
    counts: Counter[str] = Counter()
    reasons: dict[str, int] = {}
    # Not by `group_by` and `sum`: importing pyarrow.compute takes longer, in every life of a slot, than counting here.
    pairs = Counter(zip(table["status"].to_pylist(), table["reason"].to_pylist(), strict=True))
    for (status, reason), count in pairs.items():
        counts[status] += count
        if reason:
            reasons[f"{status}: {reason}"] = count
    counted = "tokens" in names and pa.types.is_integer(table.schema.field("tokens").type)
    tokens = sum(filter(None, table["tokens"].to_pylist())) if counted else 0
    size, digest = path.stat().st_size, sha256(path)
    return Content(file.metadata.num_rows, size, digest, dict(counts), reasons, tokens)


def keys(path: Path) -> list[str]:
    """The keys of a file's rows, in order."""
    return pq.ParquetFile(path).read(columns=["key"])["key"].to_pylist()
