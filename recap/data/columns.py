"""Columns as trainers read them: a block's rows, joined to its samples by key.

A column comes from a run of ours (`run:`, resolved through its markers), from a folder of parquet files named after
the shards (`folder:`, any fsspec URL), or from the tars themselves (`member:`).
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from hpc.errors import UserError
from hpc.operator import OK
from hpc.published import Published
from recap.data.index import BLOCK

_OPEN_FILES = 256  # parquet footers that are kept


def _place(text: str) -> Any:
    """Where a column lies does not say what is in it; its identity does."""
    return dataclasses.field(default=None, metadata={"help": text, "execution": True})


@dataclass
class ColumnConfig:
    """Where one column comes from: exactly one of run, folder and member."""

    run: str | None = _place("directory of a run of this toolkit")
    folder: str | None = _place("folder or URL that holds <shard id>.parquet")
    member: str | None = None  # extension of a tar member, e.g. txt
    # of the parquet file, or key of a JSON member; default: caption for runs, text for folders
    field: str | None = None
    identity: str | None = None  # what the column's identity must begin with
    missing: str = "error"  # error | null: what a shard without this column means


class Column(Protocol):
    """One column of a corpus."""

    def check(self, shards: Sequence[str]) -> None:
        """UserError unless every one of these shards can be read."""

    def read(self, shard: str, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> list[Any]:
        """The values of a block's samples; None where there is none."""


def open_column(name: str, config: ColumnConfig) -> Column:
    """The column that a config describes. UserError where the description or the run is wrong."""
    given = [kind for kind in ("run", "folder", "member") if getattr(config, kind)]
    if len(given) != 1:
        raise UserError(f"config: `data.columns.{name}`: write exactly one of run, folder and member.")
    if config.missing not in ("error", "null"):
        raise UserError(f"config: `data.columns.{name}.missing`: {config.missing!r} is unknown. Write error or null.")
    if config.member:
        return MemberColumn(name, config.member, config.field)
    if config.run:
        return RunColumn(name, config)
    return FolderColumn(name, config)


class MemberColumn:
    """A text member of the tars, or one key of a JSON member."""

    def __init__(self, name: str, member: str, key: str | None) -> None:
        self.name, self.member, self.key = name, member.lower().lstrip("."), key

    def check(self, shards: Sequence[str]) -> None: ...

    def read(self, shard: str, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> list[Any]:
        return [self._value(found.get(self.member)) for found in members]

    def _value(self, data: bytes | None) -> Any:
        if data is None:
            return None
        text = data.decode("utf-8", "replace")
        if self.key is None:
            return text
        try:
            return json.loads(text).get(self.key)
        except (ValueError, AttributeError):
            return None


class ParquetColumn:
    """Rows of parquet files, one file a shard, in the order of the tar."""

    def __init__(self, name: str, config: ColumnConfig, field: str) -> None:
        self.name, self.config, self.field = name, config, field
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._lock = Lock()

    def _source(self, shard: str) -> Any:
        """Path or open file of a shard's rows; None where there is none."""
        raise NotImplementedError

    def keys(self, shard: str, block: int, count: int) -> list[str]:
        """The keys of a block's rows; [] where the shard has no file."""
        with self._lock:
            file = self._file(shard)
            return self._rows(file, block * BLOCK, count, ["key"])["key"].to_pylist() if file else []

    def read(self, shard: str, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> list[Any]:
        with self._lock:  # a parquet file is read by one thread at a time
            file = self._file(shard)
            if file is None:
                return [None] * len(keys)
            rows = self._rows(file, block * BLOCK, len(keys), ["key", self.field, "status"])
        found = rows["key"].to_pylist()
        values = rows[self.field].to_pylist()
        if "status" in rows.column_names:
            values = [v if status == OK else None for v, status in zip(values, rows["status"].to_pylist())]
        if found == list(keys):
            return values
        by_key = dict(zip(found, values))
        if foreign := [key for key in found if key not in set(keys)]:
            raise UserError(
                f"data: column {self.name}: shard {shard}, samples {block * BLOCK:,} on: key {foreign[0]} is not among "
                "the tar's "
                f"(which has {keys[0]} there). The column was made from other tars: make it again, or name its own."
            )
        return [by_key.get(key) for key in keys]

    def _file(self, shard: str) -> pq.ParquetFile | None:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        source = self._source(shard)
        if source is None:
            return None
        file = pq.ParquetFile(source, pre_buffer=True)
        self._check_file(shard, file)
        self._open[shard] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _check_file(self, shard: str, file: pq.ParquetFile) -> None:
        names = file.schema_arrow.names
        for wanted in ("key", self.field):
            if wanted not in names:
                raise UserError(
                    f"config: `data.columns.{self.name}`: the file of shard {shard} has no field {wanted!r}. "
                    f"It has {', '.join(names)}: set `field`."
                )
        found = (file.schema_arrow.metadata or {}).get(b"identity", b"").decode()
        identity = self.config.identity
        if identity is None:
            self.config.identity = found or None
        elif not found.startswith(identity):
            raise UserError(
                f"data: column {self.name}: shard {shard} is of identity {found or 'unknown'}, not {identity}: another "
                "prompt, model or "
                "decoding made it. Name one identity's files."
            )

    def _rows(self, file: pq.ParquetFile, first: int, count: int, fields: list[str]) -> pa.Table:
        """Rows [first, first + count); where row groups are not ours, those that hold them."""
        names = [n for n in fields if n in file.schema_arrow.names]
        groups: list[int] = []
        skipped = at = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if at + rows > first and at < first + count:
                skipped = at if not groups else skipped
                groups.append(group)
            at += rows
        if not groups:
            return file.schema_arrow.empty_table().select(names)
        return file.read_row_groups(groups, columns=names, use_threads=False).slice(first - skipped, count)


class FolderColumn(ParquetColumn):
    """`<folder>/<shard id>.parquet`, on a disk or an object store."""

    def __init__(self, name: str, config: ColumnConfig) -> None:
        super().__init__(name, config, config.field or "text")
        assert config.folder
        self._system, self._path = fsspec.core.url_to_fs(config.folder)
        self._names: frozenset[str] | None = None

    def _listed(self) -> frozenset[str]:
        if self._names is None:
            try:
                entries = self._system.ls(self._path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                raise UserError(
                    f"config: `data.columns.{self.name}.folder`: {self.config.folder} does not exist."
                ) from None
            self._names = frozenset(entry.rstrip("/").rpartition("/")[2].removesuffix(".parquet") for entry in entries)
        return self._names

    def check(self, shards: Sequence[str]) -> None:
        _check_missing(self.name, self.config, [s for s in shards if s not in self._listed()], len(shards))

    def _source(self, shard: str) -> Any:
        if shard not in self._listed():
            return None
        return self._system.open(f"{self._path.rstrip('/')}/{shard}.parquet", "rb", cache_type="none")


class RunColumn(ParquetColumn):
    """The column that a run of ours published, through its markers."""

    def __init__(self, name: str, config: ColumnConfig) -> None:
        super().__init__(name, config, config.field or "caption")
        assert config.run
        self.published = Published(config.run)
        identity = self.published.identity
        if config.identity and not identity.startswith(config.identity):
            raise UserError(
                f"data: column {name}: {config.run} is of identity {identity}, not {config.identity}: another prompt, "
                "model or "
                "decoding made it. Name the run whose captions you mean."
            )

    def check(self, shards: Sequence[str]) -> None:
        _check_missing(self.name, self.config, [s for s in shards if s not in self.published], len(shards))
        next((self._source(s) for s in shards if s in self.published), None)  # it is on a disk

    def _source(self, shard: str) -> Any:
        """From a shard's marker, when it is wanted: every rank opens every column, and a corpus has 140,000 shards."""
        found = self.published.find(shard)
        return found.file if found else None


def _check_missing(name: str, config: ColumnConfig, missing: list[str], shards: int) -> None:
    if missing and config.missing == "error":
        raise UserError(
            f"data: column {name} ({config.run or config.folder}) lacks {len(missing):,} of {shards:,} shards "
            f"(first: {missing[0]}). Finish it (hpc.rerun), or set data.columns.{name}.missing=null to train those on "
            "other columns."
        )
