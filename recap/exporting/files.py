"""The files of an export: parquet or JSON lines of about equal size, in the order of the run's shards.

They are made in two steps of parts (`recap.exporting.parts`): first the rows of a few shards each, then the files,
which are cut out of these rows.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.run.published import Published, PublishedShard
from recap.data.exported import ShardRows, file_name, write_contents
from recap.exporting.account import Account
from recap.exporting.parts import Parts
from recap.exporting.request import ExportRequest

ROWS = 500_000
_AT_ONCE = 4  # shards of one part of rows
_GROUP = 65536  # rows of a row group; the first one serves to estimate a file's size in bytes
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Size:
    """How large a file becomes: in rows, or, where `bytes` is not 0, in about so many bytes."""

    rows: int = ROWS
    bytes: int = 0


def size(text: str) -> Size:
    """Read `--shard-size`.

    >>> size("100_000"), size("500MB")
    (Size(rows=100000, bytes=0), Size(rows=500000, bytes=500000000))
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?(B)?\s*", text.replace("_", "").replace(",", "").upper())
    number = float(found[1]) * _UNITS[found[2] or ""] if found else 0
    if found is None or number < 1:
        raise UserError(f"export: --shard-size {text!r}: write rows (100000) or bytes (500MB, 2GiB), at least 1.")
    return Size(bytes=int(number)) if found[2] or found[3] else Size(rows=int(number))


def write_parquet(tables: Iterable[pa.Table], schema: pa.Schema, file: IO[bytes]) -> None:
    """Write row groups of 65,536 rows, whatever the tables' sizes."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _of_one_size(tables, _GROUP):
            writer.write_table(rows, row_group_size=_GROUP)


def write_jsonl(tables: Iterable[pa.Table], schema: pa.Schema, file: IO[bytes]) -> None:
    """A JSON object a line, UTF-8; NaN and infinities, which JSON does not know, become null."""
    for batch in (batch for table in tables for batch in table.to_batches(max_chunksize=4096)):
        for row in batch.to_pylist():
            file.write(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _of_one_size(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    held: pa.Table | None = None
    for table in tables:
        held = pa.concat_tables([held, table]) if held is not None else table
        while len(held) >= rows:
            yield held.slice(0, rows)
            held = held.slice(rows)
    if held is not None and len(held):
        yield held


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORMATS: dict[str, Callable[[Iterable[pa.Table], pa.Schema, IO[bytes]], None]] = {
    "parquet": write_parquet, "jsonl": write_jsonl
}  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Makes one part: the rows of a few shards."""

    parts: Parts
    request: ExportRequest

    def __call__(self, number: int, shards: Sequence[PublishedShard]) -> dict[str, Any]:
        account, schema = Account(), self.request.selection.schema
        tables = [self.request.rows(shard, account) for shard in shards]
        write_part(self.parts, number, pa.concat_tables(tables).select(schema.names).cast(schema))
        return account.as_record()


@dataclass(frozen=True)
class _Slice:
    """Rows [first, first + rows) of a part."""

    part: int
    first: int
    rows: int


@dataclass(frozen=True)
class _File:
    """Makes one part: a file of the export, from slices of the rows."""

    parts: Parts
    kind: str
    schema: pa.Schema

    def __call__(self, number: int, slices: Sequence[_Slice]) -> dict[str, Any]:
        with self.parts.atomic_file(self.parts.out / "data" / file_name(number, self.kind)) as file:
            FORMATS[self.kind](read(self.parts, slices), self.schema, file)
        return {}


def write_part(parts: Parts, number: int, table: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        parts.atomic_file(parts.rows / f"{number}.arrow") as file,
        pa.ipc.new_file(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=_GROUP)


def read(parts: Parts, slices: Iterable[_Slice]) -> Iterator[pa.Table]:
    """The rows of slices, one slice after another."""
    for cut in slices:
        with pa.memory_map(str(parts.rows / f"{cut.part}.arrow")) as source:
            yield pa.ipc.open_file(source).read_all().slice(cut.first, cut.rows)


def file_slices(counts: Sequence[int], size: int) -> Iterator[list[_Slice]]:
    """The slices that each file consists of. All files but the last have `size` rows; no rows make one empty file.

    Args:
        counts: rows of each part.

    >>> [[(cut.part, cut.first, cut.rows) for cut in file] for file in file_slices([3, 0, 4], 5)]
    [[(0, 0, 3), (2, 0, 2)], [(2, 2, 2)]]
    """
    held, room = list[_Slice](), size
    for part, count in enumerate(counts):
        first = 0
        while first < count:
            held.append(_Slice(part, first, min(count - first, room)))
            first, room = first + held[-1].rows, room - held[-1].rows
            if not room:
                yield held
                held, room = [], size
    if held or not any(counts):
        yield held


def write_rows(parts: Parts, shards: Iterable[PublishedShard], request: ExportRequest) -> tuple[Account, list[int]]:
    """Make the rows of all shards. Returns (their counts, how many rows each part has)."""
    account, counts = Account(), list[int]()
    for _, marker in parts.make("rows", _Rows(parts, request), _chunks(shards)):
        found = Account.of(marker)
        counts.append(found.rows)
        account.merge(found)
    return account, counts


def write_files(parts: Parts, counts: Sequence[int], kind: str, schema: pa.Schema, each: int) -> None:
    """Write data/*. counts: rows of each part. each: rows of a file."""
    for _ in parts.make("files", _File(parts, kind, schema), file_slices(counts, each)):
        pass


def rows_of_a_file(parts: Parts, counts: Sequence[int], kind: str, schema: pa.Schema, size: Size) -> int:
    """How many rows a file gets. For a size in bytes it is estimated by writing the first rows."""
    if not size.bytes or not any(counts):
        return ROWS if size.bytes else size.rows
    written, sample = io.BytesIO(), next(file_slices(counts, _GROUP))
    FORMATS[kind](read(parts, sample), schema, written)
    return max(1, int(size.bytes * sum(cut.rows for cut in sample) / written.tell()))


def write_places(folder: Path, source: Published, each: Sequence[int], rows_per_file: int) -> None:
    """Write shards.json, with which a parquet export can be read as a column. each: rows of each finished shard."""
    done = [shard for shard in source.shards if shard.id in source]
    starts = itertools.accumulate(each, initial=0)
    found = zip(done, starts, each, strict=False)
    places = [ShardRows(shard.id, shard.uri, shard.bytes, first, rows) for shard, first, rows in found]
    write_contents(folder, source.column, source.identity, rows_per_file, places)


def captioner_of(source: Published) -> dict[str, Any]:
    """The settings of the model that a captioning run used; {} for other runs."""
    found: dict[str, Any] = source.submission.config.get("captioner", {})
    return found


def _chunks(shards: Iterable[PublishedShard]) -> Iterator[list[PublishedShard]]:
    left = iter(shards)
    while chunk := list(itertools.islice(left, _AT_ONCE)):
        yield chunk
