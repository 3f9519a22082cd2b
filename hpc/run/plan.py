"""The plan: which shards a run is made of. Written once as `plan/<hash>.parquet`, never changed.

Rows are in the order of work: by ledger bucket (so that one directory listing answers for a hundred neighbours),
then by id. A slot's *home range* is a contiguous run of rows; a growing plan is a new file that holds all rows of
the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.base import atomic, damage
from hpc.base.errors import UserError
from hpc.operator import MissingShards, Shard
from hpc.run.ledger import bucket_of

if TYPE_CHECKING:  # commands that read no plan need not spend the third of a second that its import takes
    import pyarrow as pa

_ROW_GROUP = 8192


def write(directory: Path, shards: list[Shard]) -> str:
    """Write the plan, unless it is there and whole. Returns its name, a hash of 12 hex digits. UserError where two
    shards have the same id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _ordered(shards)
    for a, b in itertools.pairwise(rows):
        if a.id == b.id:
            raise UserError(f"plan: two shards have the id {a.id}: {a.uri} and {b.uri}. Name each file once.")
    name = _hash(rows)
    target = directory / f"{name}.parquet"
    schema = _schema()
    table = pa.table({f: [getattr(s, f) for s in rows] for f in schema.names}, schema=schema)
    if target.exists() and _holds(target, table):
        return name
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, row_group_size=_ROW_GROUP, compression="zstd", write_page_checksum=True, version="2.6"
    )
    if not atomic.create(target, buffer.getvalue()) and not _holds(target, table):
        atomic.replace(target, buffer.getvalue(), durable=True)  # it is damaged; readers keep the old file open
    return name


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"id": pa.string(), "uri": pa.string(), "bytes": pa.int64(), "etag": pa.string(), "expected": pa.int64()}
    return pa.schema(kinds.items())


def as_id(typed: str) -> str:
    """A shard's id from what a person may type, its path with slashes: a/b becomes a%2Fb, as ids are written."""
    return typed.strip().replace("/", "%2F")


def name_of(shards: list[Shard]) -> str:
    """The name of the plan that holds these shards."""
    return _hash(_ordered(shards))


def _ordered(shards: list[Shard]) -> list[Shard]:
    return sorted(shards, key=lambda s: (bucket_of(s.id), s.id))


def _hash(rows: Iterable[Shard]) -> str:
    digest = hashlib.sha256()
    for s in rows:
        digest.update(f"{s.id}\0{s.uri}\0{s.bytes}\0{s.etag}\0{s.expected}\n".encode())
    return digest.hexdigest()[:12]


def _holds(file: Path, table: pa.Table) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False).equals(table)
    except (OSError, pa.ArrowException):
        return False


class DamagedPlan(UserError):
    """The file of a plan cannot be read, or holds another plan than its name says."""

    def __init__(self, file: Path, why: object) -> None:
        lost = (
            "Which shards the run is made of is not known; what is published stays. The launch again, with the same "
            "shards, writes it anew."
        )
        super().__init__(damage.message(file, why, lost))


class UnreadPlan(DamagedPlan, OSError):
    """The file of a plan is not there, or the file system has an error. It is an OSError, so that workers try again
    (hpc.base.patience), and a UserError, so that commands show it as a message.
    """


class Plan:
    """A stored plan, read by ranges: an agent's memory does not grow with the number of shards. All methods raise
    DamagedPlan, or UnreadPlan where the error may pass.
    """

    def __init__(self, directory: Path, name: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not name:
            raise UserError(f"run: {directory.parent} is a training, it has no shards. Launch it again to go on.")
        self.name = name
        self.path = directory / f"{name}.parquet"
        self._starts = [0]
        with self._reading():
            self._file = pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(_schema()):
                raise pa.ArrowInvalid("it has other columns than a plan")
            for group in range(self._file.num_row_groups):
                self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except FileNotFoundError:
            raise UnreadPlan(self.path, "it is not there") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            # pyarrow also raises OSErrors for what is wrong with the content: those have no number
            kind = UnreadPlan if isinstance(error, OSError) and error.errno else DamagedPlan
            raise kind(self.path, str(error).splitlines()[0]) from error

    def _group(self, number: int, columns: list[str] | None = None) -> pa.Table:
        with self._reading():
            return self._file.read_row_group(number, columns=columns, use_threads=False)

    def check(self) -> None:
        """Raise DamagedPlan where it does not hold what its name is the hash of."""
        with self._reading():
            held = _hash(self.shards())
        if held != self.name:
            raise DamagedPlan(self.path, f"it holds another plan ({held}): it was changed after it was written")

    def __len__(self) -> int:
        return self._starts[-1]

    def shards(self, start: int = 0, stop: int | None = None) -> Iterator[Shard]:
        """Rows [start, stop) in the order of work."""
        stop = len(self) if stop is None else stop
        for group, first in enumerate(self._starts[:-1]):
            last = self._starts[group + 1]
            if last <= start or first >= stop:
                continue
            table = self._group(group)
            low, high = max(start, first) - first, min(stop, last) - first
            part = table.slice(low, high - low)
            columns = [part[f.name].to_pylist() for f in fields(Shard)]
            yield from map(Shard, *columns)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        with self._reading():
            return self._file.read(columns=columns)

    def ids(self) -> Iterator[str]:
        """All shard ids in the order of work, one row group in memory at a time."""
        for group in range(self._file.num_row_groups):
            yield from self._group(group, ["id"])["id"].to_pylist()

    def samples(self) -> tuple[int, int]:
        """(expected samples where known, shards whose count is unknown)."""
        column = self.table(["expected"])["expected"]
        import pyarrow.compute as pc

        return pc.sum(column).as_py() or 0, column.null_count

    def bytes(self) -> int:
        import pyarrow.compute as pc

        return pc.sum(self.table(["bytes"])["bytes"]).as_py() or 0


def changes(old: Plan, new: list[Shard]) -> tuple[list[str], list[str]]:
    """(ids that the new plan lacks, ids whose size or etag changed). A shard that was missing when the old plan was
    made, and is there now, is neither.
    """
    wanted = {s.id: s for s in new}
    dropped, changed = [], []
    for shard in old.shards():
        now = wanted.get(shard.id)
        if now is None:
            dropped.append(shard.id)
        elif shard.etag != MissingShards.ETAG and (now.bytes, now.etag) != (shard.bytes, shard.etag):
            changed.append(shard.id)
    return dropped, changed
