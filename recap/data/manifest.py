"""The manifest of a column: where its rows lie, shard by shard, as a training or a map job found them at its launch.
One file in the reader's run directory, which all ranks and engines of the reader map into memory.

Finding the files of a run of 140,000 shards takes seconds, a hundred megabytes and a thousand listings, so that one
process does it once. The manifest does not change when the column's run is rerun: a training that goes on reads the
generations that it began with, and a slot of a map job those that its launch found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpc.base import atomic
from hpc.base.errors import UserError

_SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),  # a hash of the reader's shard id, by which rows are sorted
        ("id", pa.string()),
        ("file", pa.string()),
        ("doubt", pa.string()),
        ("generation", pa.int32()),
        ("size", pa.int64()),
    ]
)
_VERSION = b"2"
_VERSION_1 = pa.schema([field for field in _SCHEMA if field.name != "size"])


@dataclass(frozen=True, slots=True)
class Located:
    """Where the rows of one shard lie.

    file: the name of a file in a folder, its path in a run, or a URL.
    doubt: see recap.data.column.Values.
    generation: of a run's shard, 0 for others; a rerun of the shard makes the next one.
    size: bytes of the file, 0 where that was not known.
    """

    file: str
    doubt: str = ""
    generation: int = 0
    size: int = 0


class Manifest:
    """A column's files by the reader's shard id. The file is mapped, and read as needed.

    Raises:
        UserError: the file is no manifest, or one of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as source:
                self._table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"data: {path} is no column manifest ({error}). Delete it: it is made again.") from error
        said = self._table.schema.metadata or {}
        schema = _VERSION_1 if said.get(b"version") == b"1" else _SCHEMA
        if said.get(b"version") not in (b"1", _VERSION) or not self._table.schema.remove_metadata().equals(schema):
            raise UserError(f"data: {path} is no column manifest of this version. Delete it: it is made again.")
        self.digest = said[b"digest"].decode()
        self._keys = self._table["key"].chunk(0).to_numpy() if len(self._table) else np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, shard: str) -> Located | None:
        """Where a shard's rows lie; None where the column has none. shard: the reader's id."""
        at = int(np.searchsorted(self._keys, np.uint64(_key(shard))))
        while at < len(self._keys) and self._keys[at] == _key(shard):
            if self._table["id"][at].as_py() == shard:
                return self._row(at)
            at += 1
        return None

    def some(self) -> Located | None:
        """Any one of the files; None where there are none."""
        return self._row(0) if len(self) else None

    def _row(self, at: int) -> Located:
        names = self._table.schema.names[2:]
        return Located(*(self._table[name][at].as_py() for name in names))

    def generations(self) -> dict[str, int]:
        return dict(zip(self._table["id"].to_pylist(), self._table["generation"].to_pylist(), strict=True))


@cache
def open_once(path: Path) -> Manifest:
    """The manifest at `path`, opened once for all shards of an engine. UserError: its digest is not the file's name."""
    found = Manifest(path)
    if found.digest != path.stem:
        raise UserError(f"data: {path} is another column manifest than its name says. Delete it, and launch again.")
    return found


def write(path: Path, found: Iterable[tuple[str, Located]]) -> None:
    """Write a manifest atomically. One that exists stays as it is.

    Args:
        found: the reader's shard ids and their files.
    """
    _create(path, _packed(found)[1])


def write_as_digest(folder: Path, found: Iterable[tuple[str, Located]]) -> str:
    """Write a manifest that is named after its digest; return the name. A file of that name has the same content."""
    digest, data = _packed(found)
    _create(folder / f"{digest}.arrow", data)
    return f"{digest}.arrow"


def _create(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.create(path, data)  # False: another process was first


def _packed(found: Iterable[tuple[str, Located]]) -> tuple[str, bytes]:
    """Digest and content of a manifest."""
    rows = sorted((_key(shard), shard, at.file, at.doubt, at.generation, at.size) for shard, at in found)
    made = hashlib.sha256()
    for _, *facts in rows:
        made.update("\0".join(map(str, facts)).encode() + b"\n")
    digest = made.hexdigest()[:16]
    metadata = {b"version": _VERSION, b"digest": digest.encode()}
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA.with_metadata(metadata)) as writer:
        writer.write_table(pa.table(arrays, schema=_SCHEMA.with_metadata(metadata)))
    return digest, sink.getvalue().to_pybytes()


def _key(shard: str) -> int:
    return int.from_bytes(hashlib.blake2b(shard.encode(), digest_size=8).digest())
