"""Column files: one parquet file per shard, whose bytes depend on the identity and the input alone.

A file says what it was made from (`uri` and `bytes` in its schema's metadata): folders of such files have no plan.
Rows are in the shard's order, one per sample, failed ones too; row groups of 512; page checksums on. The fields are
`key`, the operator's own, then `status`, `reason`, `detail`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc import atomic
from hpc.operator import OK, SKIPPED, Column, Row, Shard

ROW_GROUP = 512


def schema(column: Column, identity: str) -> pa.Schema:
    fields = [("key", pa.string()), *column.fields, ("status", pa.string()), ("reason", pa.string())]
    made = pa.schema([*fields, ("detail", pa.string())])
    return made.with_metadata({"column": column.name, "identity": identity})


def made_from(target: pa.Schema, shard: Shard) -> pa.Schema:
    """The schema of one shard's file, which says what it was made from: folders of such files have no plan."""
    return target.with_metadata({**(target.metadata or {}), "uri": shard.uri, "bytes": str(shard.bytes)})


def to_table(rows: list[Row], target: pa.Schema) -> pa.Table:
    """Rows (one shard's, in order) as a table of `target`; fields that a row does not have are null."""
    fixed = {"key", "status", "reason", "detail"}
    data = {f.name: [getattr(r, f.name) if f.name in fixed else r.values.get(f.name) for r in rows] for f in target}
    return pa.table(data, schema=target)


def _writer(path: Path, target: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, target, compression="zstd", version="2.6", write_page_checksum=True)


def read(path: Path) -> pa.Table:
    """A whole column file, every page with its checksum."""
    return pq.ParquetFile(path, page_checksum_verification=True).read()


# --- segments ---------------------------------------------------------------------------------


def write_segment(folder: Path, start: int, table: pa.Table) -> None:
    """Save samples [start, start + rows) of an unfinished shard. Whole or not at all; never over another's.

    The range is in the name: owners with another segment size (a zombie and its successor) cannot take each other's
    place.
    """
    atomic.make_below(folder, 3)  # of <run>/segments
    target = folder / f"{start:08d}-{start + table.num_rows:08d}.parquet"
    source = atomic.temporary(target)
    try:
        with _writer(source, table.schema) as writer:
            writer.write_table(table)
        _sync_file(source)
        try:
            atomic.link_new(source, target)
        except FileExistsError:
            return
    finally:
        source.unlink(missing_ok=True)
    atomic.sync_directory(folder)


def read_segments(folder: Path, target: pa.Schema) -> dict[int, pa.Table]:
    """Segments by first sample, in order, no sample twice. One that cannot be used is removed (it is made again)."""
    found: dict[int, pa.Table] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return found
    end = 0  # samples before this are found
    for name in names:
        if not (match := re.fullmatch(r"(\d+)-(\d+)\.parquet", name)):
            continue
        start, stop = int(match[1]), int(match[2])
        if stop <= end:
            continue
        try:
            table = read(folder / name)
        except FileNotFoundError:  # another owner finished the shard meanwhile
            continue
        except (OSError, pa.ArrowException):
            table = None
        table = _conformed(table, target) if table is not None and table.num_rows == stop - start else None
        if table is None:
            (folder / name).unlink(missing_ok=True)
            continue
        begin = max(start, end)
        found[begin] = table.slice(begin - start)
        end = stop
    return found


def _conformed(table: pa.Table, target: pa.Schema) -> pa.Table | None:
    """Rows of an earlier version of the code, whose files lacked fields that are null then; None where more differs."""
    if table.schema.equals(target):
        return table
    missing = [field for field in target if field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    same = len(table.column_names) == len(target)
    table = table.select(target.names) if same else table
    return table.cast(target) if same and table.schema.equals(target) else None


def keep_good(tables: dict[int, pa.Table], folder: Path) -> None:
    """Save what an earlier generation did well (ok and skipped rows) as segments of a new one; the rest is done again.

    Args:
        tables: the earlier rows, by index of the first.
    """
    for first, table in tables.items():
        good = [status in (OK, SKIPPED) for status in table["status"].to_pylist()]
        start = 0
        for is_good, run in itertools.groupby(good):
            length = len(list(run))
            if is_good:
                write_segment(folder, first + start, table.slice(start, length).combine_chunks())
            start += length


def remove_segments(folder: Path) -> None:
    try:
        for name in os.listdir(folder):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass  # a superseded owner may still write there; what it leaves is never read


# --- the finished file ------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a column file holds. counts: {status: n}; reasons: {"skipped: image: truncated": n}."""

    rows: int
    bytes: int
    sha256: str
    counts: dict[str, int]
    reasons: dict[str, int]


def write(path: Path, segments: Iterable[pa.Table], target: pa.Schema) -> None:
    """Write the whole column file at a private name and force it to storage.

    Row groups are 512 whatever the segments.
    """
    atomic.make_below(path.parent, 3)  # of <run>/columns
    with _writer(path, target) as writer:
        for group in _regroup(segments, target):
            writer.write_table(group, row_group_size=ROW_GROUP)
    _sync_file(path)


def _regroup(tables: Iterable[pa.Table], target: pa.Schema) -> Iterator[pa.Table]:
    held = target.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP).combine_chunks()
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held.combine_chunks()


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inspect(path: Path) -> Content:
    """Read a finished file back, every page with its checksum. Raises OSError or ArrowException where it is damaged."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for batch in file.iter_batches(batch_size=8192):
        statuses = batch.column("status").to_pylist()
        counts.update(statuses)
        for status, reason in zip(statuses, batch.column("reason").to_pylist(), strict=True):
            if reason:
                reasons[f"{status}: {reason}"] += 1
    return Content(file.metadata.num_rows, path.stat().st_size, sha256(path), dict(counts), dict(reasons))


def keys(path: Path) -> list[str]:
    return pq.read_table(path, columns=["key"])["key"].to_pylist()
