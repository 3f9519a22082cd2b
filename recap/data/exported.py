"""A data set that `recap.export` wrote, read as a column again.

Its files hold the samples of many shards each, without those that have no caption. OUT/shards.json says which rows are
of which shard; they are joined by key. To read one block, all row groups of its shard are read (65,536 rows each), so
that the run's own column is faster to read.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system
from hpc.operator import Shard
from recap.data.blocks import BLOCK
from recap.data.changed_files import gone
from recap.data.column import ColumnConfig, ColumnOfFiles, Values, check_missing
from recap.data.headers import without_dot_slash
from recap.data.manifest import Located, Manifest
from recap.data.origin import Origins, describe_mapping
from recap.data.row_groups import rows_of
from recap.data.same_image import FIELD

CONTENTS = "shards.json"
FIELD_OF_CAPTIONS = "re_caption"
_KEPT = 4  # shards whose rows are kept in memory


@dataclass(frozen=True)
class ShardRows:
    """Which rows of the export are of one shard.

    id: of the shard. uri, bytes: of the tar that they were made from.
    first, rows: number of the first one, counted over all files, and how many there are.
    """

    id: str
    uri: str
    bytes: int
    first: int
    rows: int


def file_name(number: int, kind: str = "parquet") -> str:
    return f"train-{number:05d}.{kind}"


def write_contents(folder: Path, column: str, identity: str, rows_per_file: int, shards: Sequence[ShardRows]) -> None:
    """Write OUT/shards.json. Every file but the last holds rows_per_file rows."""
    head = {"column": column, "identity": identity, "rows_per_file": rows_per_file}
    lines = ",\n".join(json.dumps(asdict(shard), ensure_ascii=False) for shard in shards)
    (folder / CONTENTS).write_text(f'{json.dumps(head)[:-1]}, "shards": [\n{lines}\n]}}\n', encoding="utf-8")


def find(folder: str) -> str | None:
    """The export's folder, for an export or its `data` folder; None where `folder` is neither."""
    system, path = file_system(folder)
    above, _, last = path.rstrip("/").rpartition("/")
    for place in (path.rstrip("/"), *([above] if last == "data" else [])):
        if system.exists(f"{place}/{CONTENTS}"):
            return place
    return None


def tables(place: str) -> Iterator[tuple[str, pa.Table]]:
    """(shard, its rows) of an export, whose shards.json lies at `place`. UserError where files have fewer rows."""
    system, _ = file_system(place)
    contents = json.loads(system.cat_file(f"{place}/{CONTENTS}"))
    opened, held = -1, pa.table({})
    for shard in (ShardRows(**found) for found in contents["shards"]):
        parts, at, end = [], shard.first, shard.first + shard.rows
        while at < end:
            number, first = divmod(at, contents["rows_per_file"])
            if number != opened:
                with system.open(f"{place}/data/{file_name(number)}", "rb") as file:
                    opened, held = number, pq.read_table(file)
            parts.append(held.slice(first, end - at))
            if not len(parts[-1]):
                raise UserError(f"data: {place}/data/{file_name(number)} has fewer rows than {CONTENTS} says.")
            at += len(parts[-1])
        if parts:
            yield shard.id, pa.concat_tables(parts)


class ExportedColumn(ColumnOfFiles):
    """One field of an export, `re_caption` if none is named (see `recap.data.column.Column`)."""

    def __init__(self, name: str, config: ColumnConfig, place: str, manifest: Manifest | None = None) -> None:
        super().__init__(name, config, config.field or FIELD_OF_CAPTIONS, manifest)
        assert config.folder
        self._system, self._place = file_system(config.folder)[0], place
        self._kept: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = Lock()  # guards _kept; never held while a file is read

    @cached_property
    def _contents(self) -> dict[str, Any]:
        """The content of shards.json. Readers with a manifest never need it."""
        contents: dict[str, Any] = json.loads(self._system.cat_file(f"{self._place}/{CONTENTS}"))
        if not str(contents["identity"]).startswith(self.config.identity or ""):
            raise UserError(
                f"data: column {self.name}: {self.config.folder} is of identity {contents['identity']}, not "
                f"{self.config.identity}: another prompt, model or decoding made it. Name the export that you mean."
            )
        return {**contents, "shards": {shard["id"]: ShardRows(**shard) for shard in contents["shards"]}}

    @cached_property
    def _origins(self) -> Origins:
        known = [Shard(found.id, found.uri, found.bytes) for found in self._contents["shards"].values()]
        return Origins(self.name, str(self.config.folder), known)

    def locate(self, shard: Shard) -> Located | None:
        origin = self._origins.find(shard)
        if origin is None:
            return None
        rows = self._contents["shards"][origin.shard.id]
        where = f"{self._contents['identity']}:{self._contents['rows_per_file']}:{rows.first}:{rows.rows}"
        return Located(where, origin.doubt)

    def check(self, shards: Sequence[Shard]) -> str:
        found = [(shard, self._origins.find(shard)) for shard in shards]
        check_missing(self.name, self.config, [shard.id for shard, origin in found if origin is None], len(shards))
        for shard, _ in found[:1]:
            self.read(shard, 1, [], [])  # UserError for a field that is not there
        return describe_mapping(self.name, [(shard, origin) for shard, origin in found if origin])

    def read(self, shard: Shard, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> Values:
        located = self.located(shard)
        if located is None:
            return Values([None] * len(keys), [None] * len(keys))
        import pyarrow.compute as pc  # 0.1 s: a launch reads no rows

        table = self._table(shard, located)
        at = pc.index_in(pa.array([without_dot_slash(key) for key in keys], pa.string()), table["key"])
        if block == 0 and len(keys) >= min(BLOCK, max(len(table), 2)) and len(table) and at.null_count == len(keys):
            raise UserError(
                f"data: column {self.name}: shard {shard.id}: none of its first {len(keys)} keys ({keys[0]}, …) is in "
                f"{self.config.folder}, where the shard has {table['key'][0]}, …. It was exported from other tars."
            )
        taken = table.take(at)
        return Values(taken[self.field].to_pylist(), taken[FIELD].to_pylist(), located.doubt)

    def pieces(self, shard: Shard) -> Generator[tuple[list[str], Values]]:
        located = self.located(shard)
        for rows in self._table(shard, located).to_batches(BLOCK) if located else []:
            values = Values(rows[self.field].to_pylist(), rows[FIELD].to_pylist(), located.doubt if located else "")
            yield rows["key"].to_pylist(), values

    def _some_schema(self) -> pa.Schema | None:
        with self._system.open(f"{self._place}/data/{file_name(0)}", "rb") as source, pq.ParquetFile(source) as file:
            return file.schema_arrow

    def known_identity(self) -> str:
        return str(self._contents["identity"])

    def _table(self, shard: Shard, located: Located) -> pa.Table:
        """The rows of a shard: the key, the column's field and the images' digests."""
        with self._lock:
            kept = self._kept.get(shard.id)
        if kept is not None:
            return kept
        identity, *numbers = located.file.split(":")
        rows_per_file, begin, count = map(int, numbers)
        number, first = divmod(begin, rows_per_file)
        parts = [pa.table({name: pa.array([], pa.string()) for name in ("key", self.field, FIELD)})]
        while (left := count - sum(map(len, parts))) > 0:
            parts.append(self._part(shard, identity, number, first, min(left, rows_per_file - first)))
            number, first = number + 1, 0
        table = pa.concat_tables(parts[1:] or parts).combine_chunks()
        table = table.set_column(
            0, "key", pa.array([without_dot_slash(key) for key in table["key"].to_pylist()], pa.string())
        )
        with self._lock:
            self._kept[shard.id] = table
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return table

    def _part(self, shard: Shard, identity: str, number: int, first: int, count: int) -> pa.Table:
        name = f"{self._place}/data/{file_name(number)}"
        try:
            with self._system.open(name, "rb") as source, pq.ParquetFile(source) as file:
                self.check_names(name, file.schema_arrow.names, [FIELD])
                found = rows_of(file, first, count, ["key", self.field, FIELD])
                same = (file.schema_arrow.metadata or {}).get(b"identity", b"").decode() == identity
        except FileNotFoundError:
            raise gone(self.name, shard.id, name) from None
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"data: column {self.name}: {name} cannot be read: {error}. Export it again.") from error
        if not same or len(found) != count:
            raise gone(self.name, shard.id, f"{name} as it was")
        return found
