"""The files of an export: parquet or JSON lines of about one size, in the order of the run's shards."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.base.on_all_cores import on_all_cores
from hpc.run.published import Published, PublishedShard
from recap.data.exported import ShardRows, file_name, write_contents
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.rows import Added, RowsOf, Selection

ROWS = 500_000
_AT_ONCE = 4  # shards that a process makes the rows of
_MEASURED = 65536  # rows by which a file's size in bytes is estimated: a row group
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Size:
    """How large a file becomes: in rows, or in about so many bytes."""

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


def write_parquet(table: pa.Table, file: IO[bytes]) -> None:
    pq.write_table(table, file, compression="zstd", row_group_size=65536)


def write_jsonl(table: pa.Table, file: IO[bytes]) -> None:
    """A JSON object a line, UTF-8; NaN and infinities, which JSON does not know, become null."""
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            file.write(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORMATS: dict[str, Callable[[pa.Table, IO[bytes]], None]] = {"parquet": write_parquet, "jsonl": write_jsonl}


class Files:
    """Writes tables one after another into data/train-NNNNN.FORMAT, each file but the last with `rows` rows."""

    def __init__(self, folder: Path, kind: str, schema: pa.Schema, size: Size) -> None:
        self._folder, self._kind, self._schema, self._size = folder / "data", kind, schema, size
        self.rows = 0 if size.bytes else size.rows  # of a file; 0: not measured yet
        self._held, self._number = [schema.empty_table()], 0
        self._folder.mkdir(parents=True)

    def add(self, table: pa.Table) -> None:
        chosen = table.select(self._schema.names).replace_schema_metadata(self._schema.metadata)
        self._held.append(chosen)
        if not self.rows and sum(map(len, self._held)) >= _MEASURED:
            self._measure()
        while self.rows and sum(map(len, self._held)) >= self.rows:
            whole = pa.concat_tables(self._held)
            self._write(whole.slice(0, self.rows))
            self._held = [whole.slice(self.rows)]

    def close(self) -> None:
        """Write what is left; an export without rows is one file without rows."""
        if not self.rows:
            self._measure()
            self.add(self._schema.empty_table())
        if sum(map(len, self._held)) or not self._number:
            self._write(pa.concat_tables(self._held))

    def _measure(self) -> None:
        sample, written = pa.concat_tables(self._held), io.BytesIO()
        FORMATS[self._kind](sample.slice(0, _MEASURED), written)
        self.rows = (
            max(1, int(self._size.bytes * min(len(sample), _MEASURED) / written.tell())) if len(sample) else ROWS
        )

    def _write(self, table: pa.Table) -> None:
        with (self._folder / file_name(self._number, self._kind)).open("wb") as file:
            FORMATS[self._kind](table, file)
        self._number += 1


def write(
    source: Published,
    shards: Iterable[PublishedShard],
    making: Path,
    others: dict[str, Added],
    selection: Selection,
    kind: str,
    size: Size,
) -> Account:
    """Write data/* and, beside parquet, shards.json into a folder."""
    files, places, account = Files(making, kind, selection.schema, size), list[ShardRows](), Account()
    same, captioner = SameImages(), source.submission.config.get("captioner", {})
    for chunk, made in on_all_cores(RowsOf(selection, others), _chunks(shards)):
        for shard, table in zip(chunk, made.tables, strict=True):
            files.add(table)
            places.append(ShardRows(shard.shard.id, shard.shard.uri, shard.shard.bytes, account.rows, len(table)))
            account.add(captioner, shard, table)
        account.downloads.add(made.downloads)
        same.tell(made.without_digests)
    files.close()
    if kind == "parquet":  # which opens again as a column
        write_contents(making, source.column, source.identity, files.rows, places)
    return account


def _chunks(shards: Iterable[PublishedShard]) -> Iterator[list[PublishedShard]]:
    left = iter(shards)
    while chunk := list(itertools.islice(left, _AT_ONCE)):
        yield chunk
