"""What parquet and arrow files share as kinds of input: a file is a table, its rows are samples."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa

from hpc.operator import Damage, Shard
from recap.data.blocks import ShardBlocks
from recap.data.kind import Wanted
from recap.data.kinds.table import Reading, check_layouts
from recap.data.tars import Sample

_THREADS = 16


class TableFile(Protocol):
    """An open file."""

    schema: pa.Schema

    def rows(self, reading: Reading, blocks: ShardBlocks) -> Iterator[Sample]:
        """All rows, which `blocks` takes in; what is wrong on the way is left with `reading`."""


class TableFiles:
    """See `recap.data.kind.Kind`. Subclasses say how a file is opened, and how many rows it has."""

    name: str
    endings: tuple[str, ...]

    def _opened(self, shard: Shard) -> AbstractContextManager[TableFile | Damage]:
        """ShardError, OSError: the file system does not give it."""
        raise NotImplementedError

    def _count(self, uri: str) -> int | None:
        """None where the file says nothing: who reads it says why."""
        raise NotImplementedError

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        """As the files say."""
        wanted = [uri for uri in uris if how == self.name or (how == "auto" and "://" not in uri)]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = zip(wanted, pool.map(self._count, wanted), strict=True)
            return {uri: rows for uri, rows in counts if rows is not None}

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return check_layouts(shards, wanted, self._schema)

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """There are, in all of them."""

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        with self._opened(shard) as found:
            if isinstance(found, Damage):
                yield found
                return
            reading = Reading(found.schema, wanted)
            yield from found.rows(reading, blocks)
            blocks.ended = not reading.damages  # a scan, which reads less, may know other keys of a damaged part
            if damage := reading.damage():
                yield damage

    def _schema(self, shard: Shard) -> pa.Schema | None:
        with self._opened(shard) as found:
            return None if isinstance(found, Damage) else found.schema
