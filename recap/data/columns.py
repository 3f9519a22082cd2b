"""Columns as trainers read them: a block's rows, joined to its samples by key.

A column comes from a run of ours (`run:`, resolved through its markers), from a folder of parquet files named after
the shards, or of an export (`folder:`, any fsspec URL), or from the tars themselves (`member:`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system, is_web
from hpc.operator import OK, Shard
from hpc.run.directory import Run
from hpc.run.published import Published, some_file
from recap.data.blocks import BLOCK
from recap.data.changed_files import as_launched
from recap.data.column import Column, ColumnConfig, ColumnOfFiles, Values, check_missing
from recap.data.headers import without_dot_slash
from recap.data.manifest import Located, Manifest
from recap.data.open_files import OpenFiles
from recap.data.origin import Origin, Origins, Places, describe_mapping
from recap.data.remote_parquet import RemoteParquet
from recap.data.row_groups import rows_of
from recap.data.same_image import digest_field
from recap.data.texts import TextMember


def open_column(name: str, config: ColumnConfig, manifest: Manifest | None = None) -> Column:
    """The column that a config describes.

    Args:
        manifest: where the files lie; without it they are looked for in the run or folder as it is now.

    Raises:
        UserError: the description or the run is wrong.
    """
    given = [kind for kind in ("run", "folder", "member") if getattr(config, kind)]
    if len(given) != 1:
        raise UserError(f"config: `data.columns.{name}`: write exactly one of run, folder and member.")
    if config.missing not in ("error", "null"):
        raise UserError(f"config: `data.columns.{name}.missing`: {config.missing!r} is unknown. Write error or null.")
    if config.member:
        return MemberColumn(name, config.member, config.field)
    if config.run:
        return RunColumn(name, config, manifest)
    from recap.data import exported

    place = exported.find(str(config.folder))
    if place is not None:
        return exported.ExportedColumn(name, config, place, manifest)
    return FolderColumn(name, config, manifest)


def members_of(columns: Iterable[Column]) -> frozenset[str]:
    """Extensions of the tar members that the columns read."""
    return frozenset(column.text.member for column in columns if isinstance(column, MemberColumn))


def runs_of(columns: Iterable[Column]) -> Iterator[Published]:
    """The runs that some of the columns are of, each once."""
    runs = {column.config.run: column for column in columns if isinstance(column, RunColumn)}
    return (column.published for column in runs.values())


class MemberColumn:
    """A text member of the tars, or one key of a JSON member. What is no text is returned as JSON holds it."""

    def __init__(self, name: str, member: str, key: str | None) -> None:
        self.name, self.text = name, TextMember(member, key.split(".")) if key else TextMember.named(member)

    def check(self, shards: Sequence[Shard]) -> str:
        return ""

    def read(self, shard: Shard, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> Values:
        return Values([self._value(found) for found in members])

    def _value(self, members: Mapping[str, bytes]) -> Any:
        text, _ = self.text.read(members)
        data = members.get(self.text.member)
        return self.text.value(data)[0] if text is None and self.text.path and data is not None else text


class ParquetColumn(ColumnOfFiles):
    """Rows of parquet files, one file a shard, in the order of the tar. Files are read side by side by many threads."""

    def __init__(self, name: str, config: ColumnConfig, field: str, manifest: Manifest | None) -> None:
        super().__init__(name, config, field, manifest)
        self.files = OpenFiles()  # shared by columns that read the same files
        self._lock = Lock()  # guards config.identity

    def _opened(self, shard: Shard, located: Located) -> tuple[pq.ParquetFile, str]:
        """(the open file, `Values.doubt`)"""
        raise NotImplementedError

    def _place(self, located: Located) -> str:
        """Path or URL of a file."""
        raise NotImplementedError

    def _as_launched(self, shard: Shard) -> AbstractContextManager[None]:
        """Within the block a shard's file is opened or read. UserError where it is not what it was at launch."""

        def where() -> tuple[str, int]:
            located = self.located(shard)
            return (self._place(located), located.size) if located else ("a file", 0)

        return as_launched(self.name, shard.id, where)

    def keys(self, shard: Shard, block: int, count: int) -> list[str]:
        """The keys of a block's rows; [] where the shard has no file."""
        with self._file(shard) as (file, _):
            found = rows_of(file, block * BLOCK, count, ["key"])["key"].to_pylist() if file else []
        return [without_dot_slash(key) for key in found]

    def read(self, shard: Shard, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> Values:
        """Values and image digests of one block's samples, in the order of `keys`: [len(keys)] each.

        A sample has None where the shard has no file of this column, or the file no row with its key.

        Raises:
            UserError: the file has a key that the tar does not have.
        """
        with self._file(shard) as (file, doubt):
            if file is None:
                return Values([None] * len(keys), [None] * len(keys))
            field = digest_field(file.schema_arrow)
            rows = rows_of(file, block * BLOCK, len(keys), self._fields(file, field))
        found, read = self._values(rows, field, doubt)
        if found == list(keys):
            return read
        self._check_keys(shard, block, found, keys)
        at = {key: place for place, key in enumerate(found)}
        places = [at.get(key) for key in keys]
        values, digests = (
            None if v is None else [None if place is None else v[place] for place in places]
            for v in (read.values, read.digests)
        )
        return Values(values or [], digests, doubt)

    def pieces(self, shard: Shard) -> Generator[tuple[list[str], Values]]:
        located = self.located(shard)
        if located is None:
            return
        with self._as_launched(shard):
            file, doubt = self._opened(shard, located)
        with file:
            self._check_file(shard.id, file)
            field = digest_field(file.schema_arrow)
            for group in range(file.num_row_groups):  # one by one: together they would be read ahead whole
                batches = file.iter_batches(BLOCK, [group], columns=self._fields(file, field), use_threads=False)
                while True:
                    with self._as_launched(shard):
                        rows = next(batches, None)
                    if rows is None:
                        break
                    yield self._values(rows, field, doubt)

    def ok_rows(self, shard: Shard) -> np.ndarray:
        """bool [rows]: which rows of a shard are ok; none where there is no file."""
        located = self.located(shard)
        if located is None:
            return np.zeros(0, bool)
        import pyarrow.compute as pc  # 0.1 s: a launch reads no rows

        with self._as_launched(shard), self._opened(shard, located)[0] as file:
            return pc.equal(file.read(["status"], use_threads=False)["status"], OK).to_numpy()

    def _fields(self, file: pq.ParquetFile, digests: str | None) -> list[str]:
        wanted = ("key", self.field, "status", digests or "key")
        return [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]

    def _values(self, rows: pa.Table | pa.RecordBatch, field: str | None, doubt: str) -> tuple[list[str], Values]:
        """(keys, values) of rows as they lie in the file. field: name of the field with the images' digests."""
        values = rows[self.field].to_pylist()
        if "status" in rows.schema.names:
            values = [v if status == OK else None for v, status in zip(values, rows["status"].to_pylist(), strict=True)]
        keys = [without_dot_slash(key) for key in rows["key"].to_pylist()]
        return keys, Values(values, rows[field].to_pylist() if field else None, doubt)

    def _check_keys(self, shard: Shard, block: int, found: list[str], keys: Sequence[str]) -> None:
        if foreign := [key for key in found if key not in set(keys)]:
            raise UserError(
                f"data: column {self.name}: shard {shard.id}, samples {block * BLOCK:,} on: key {foreign[0]} is not "
                f"among the tar's (which has {keys[0]} there). The column was made from other tars: make it again, or "
                "name its own."
            )

    @contextmanager
    def _file(self, shard: Shard) -> Iterator[tuple[pq.ParquetFile | None, str]]:
        """(the open file of a shard, `Values.doubt`), which no other thread uses meanwhile."""

        def opened() -> tuple[pq.ParquetFile | None, str]:
            located = self.located(shard)
            return self._opened(shard, located) if located is not None else (None, "")

        with self._as_launched(shard), self.files.file(shard.id, opened) as (file, doubt):
            if file is not None:
                self._check_file(shard.id, file)
            yield file, doubt

    def _check_file(self, shard: str, file: pq.ParquetFile) -> None:
        self.check_names(f"the file of shard {shard}", file.schema_arrow.names)
        found = (file.schema_arrow.metadata or {}).get(b"identity", b"").decode()
        with self._lock:
            if self.config.identity is None:
                self.config.identity = found or None
            identity = self.config.identity
        if identity is None:
            return
        if not found.startswith(identity):
            raise UserError(
                f"data: column {self.name}: shard {shard} is of identity {found or 'unknown'}, not {identity}: another "
                "prompt, model or "
                "decoding made it. Name one identity's files."
            )


class FolderColumn(ParquetColumn):
    """`<folder>/<shard id>.parquet`, on a disk or an object store. Files of this toolkit name the tar that they were
    made from."""

    def __init__(self, name: str, config: ColumnConfig, manifest: Manifest | None = None) -> None:
        super().__init__(name, config, config.field or "text", manifest)
        assert config.folder
        self._system, self._path = file_system(config.folder)
        self._is_store = "file" not in self._system.protocol and not is_web(self._system)
        self._places = Places()
        self._sizes: dict[str, int] = {}

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Paths below the folder by shard ids, in which a slash is %2F: a/b.parquet and a%2Fb.parquet are the same."""
        if not self._system.exists(self._path):
            raise UserError(f"config: `data.columns.{self.name}.folder`: {self.config.folder} does not exist.")
        above = f"{self._path.rstrip('/')}/"
        entries = self._system.find(self._path, detail=self._is_store)
        found = {entry.removeprefix(above).removesuffix(".parquet"): entry for entry in entries}
        if self._is_store:
            self._sizes = {relative: int(entries[entry]["size"] or 0) for relative, entry in found.items()}
        return {relative.replace("/", "%2F"): relative for relative in found}

    @cached_property
    def _by_uri(self) -> dict[str, str]:
        """Names by the uri of the tar that a file names as its source.

        Opens every file, so it is used only where an id is missing; {} where the first file names no source.
        """
        names = sorted(self._listed)
        if not names or not self._source_uri(names[0]):
            return {}
        with ThreadPoolExecutor(16) as pool:
            return {uri: name for uri, name in zip(pool.map(self._source_uri, names), names, strict=True) if uri}

    def _source_uri(self, name: str) -> str:
        """The normalised uri of the tar that a file names as its source; "" where it names none."""
        try:
            with self._parquet(self._listed[name]) as file:
                source = _source_shard(name, file)
        except (OSError, pa.ArrowException):  # reported when the file's shard is read
            return ""
        return self._places.normalised(source.uri) if source else ""

    def _name(self, shard: Shard) -> str | None:
        if shard.id in self._listed:
            return shard.id
        return self._by_uri.get(self._places.normalised(shard.uri))

    def locate(self, shard: Shard) -> Located | None:
        name = self._name(shard)
        if name is None:
            return None
        relative = self._listed[name]
        return Located(relative, size=self._sizes.get(relative, 0))

    def _parquet(self, path: str, size: int = 0) -> pq.ParquetFile:
        whole = f"{self._path.rstrip('/')}/{path}.parquet"
        if self._is_store:
            return RemoteParquet(self._system, whole, size)
        return pq.ParquetFile(self._system.open(whole, "rb", cache_type="none"), pre_buffer=True)

    def known_identity(self) -> str:
        """Identity of the first file. `_check_file` refuses files of another."""
        schema = self.some_schema()
        return ((schema.metadata if schema else None) or {}).get(b"identity", b"").decode()

    def _place(self, located: Located) -> str:
        return f"{str(self.config.folder).rstrip('/')}/{located.file}.parquet"

    def _some_schema(self) -> pa.Schema | None:
        some = self._manifest.some() if self._manifest is not None else None
        for path in [some.file] if some else [self._listed[name] for name in sorted(self._listed)[:1]]:
            with self._parquet(path) as file:
                return file.schema_arrow
        return None

    def check(self, shards: Sequence[Shard]) -> str:
        self.check_first_file()
        names = [(shard, self._name(shard)) for shard in shards]
        check_missing(self.name, self.config, [s.id for s, name in names if name is None], len(shards))
        return describe_mapping(self.name, [(s, Origin(replace(s, id=name))) for s, name in names if name is not None])

    def _opened(self, shard: Shard, located: Located) -> tuple[pq.ParquetFile, str]:
        file, place = self._parquet(located.file, located.size), self._places.normalised(shard.uri)
        name = located.file.replace("/", "%2F")
        source = _source_shard(name, file)
        if source and self._places.normalised(source.uri) != place and (other := self._by_uri.get(place)):
            file.close()
            file = self._parquet(self._listed[other])
            source = _source_shard(other, file)
        origin = Origins(self.name, str(self.config.folder), [source]).find(shard) if source else None
        return file, origin.doubt if origin else ""


class RunColumn(ParquetColumn):
    """The column that a run of this toolkit published, in its directory or on an object store, found by its markers."""

    def __init__(self, name: str, config: ColumnConfig, manifest: Manifest | None = None) -> None:
        super().__init__(name, config, config.field or "caption", manifest)
        assert config.run
        self._run = Run(config.run)
        if manifest is None:
            self._check_identity(self.published.identity)

    @cached_property
    def published(self) -> Published:
        """What the run has finished. It lists the run's markers, which readers with a manifest never need."""
        return Published(self._run.path)

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self.name, str(self.config.run), self.published.shards)

    def known_identity(self) -> str:
        return self.published.identity

    def _check_identity(self, identity: str) -> None:
        if self.config.identity and not identity.startswith(self.config.identity):
            raise UserError(
                f"data: column {self.name}: {self.config.run} is of identity {identity}, not {self.config.identity}: "
                "another prompt, model or decoding made it. Name the run whose captions you mean."
            )

    def check(self, shards: Sequence[Shard]) -> str:
        self.check_first_file()
        found = [(shard, self._origin(shard)) for shard in shards]
        check_missing(self.name, self.config, [s.id for s, origin in found if origin is None], len(shards))
        return describe_mapping(self.name, [(s, origin) for s, origin in found if origin])

    def _origin(self, shard: Shard) -> Origin | None:
        origin = self._origins.find(shard)
        return origin if origin and origin.shard.id in self.published else None

    def locate(self, shard: Shard) -> Located | None:
        origin = self._origin(shard)
        if origin is None:
            return None
        name = origin.shard.id
        marker = self.published.marker(name)
        return Located(marker["file"], origin.doubt, self.published.generation(name), int(marker.get("bytes", 0)))

    def generation(self, shard: Shard) -> int:
        origin = self._origin(shard)
        return self.published.generation(origin.shard.id) if origin else 0

    def _opened(self, shard: Shard, located: Located) -> tuple[pq.ParquetFile, str]:
        return _parquet_at(self._place(located), located.size), located.doubt

    def _place(self, located: Located) -> str:
        return self._run.locate(located.file)

    def _some_schema(self) -> pa.Schema | None:
        some = self._manifest.some() if self._manifest is not None else None
        place = self._run.locate(some.file) if some else some_file(self._run)
        if place is None:
            return None
        with _parquet_at(place) as file:
            return file.schema_arrow


def _parquet_at(place: str, size: int = 0) -> pq.ParquetFile:
    """The parquet file at a path or URL, opened. size: its bytes, 0 where they are not known."""
    system, path = file_system(place)
    return pq.ParquetFile(path, pre_buffer=True) if place == path else RemoteParquet(system, path, size)


def _source_shard(name: str, file: pq.ParquetFile) -> Shard | None:
    """The tar that a column file names as its source; None where it names none."""
    said = file.schema_arrow.metadata or {}
    return Shard(name, said[b"uri"].decode(), int(said.get(b"bytes", b"0"))) if b"uri" in said else None
