"""What parquet and arrow files share as kinds of input: a file is a table, and its rows are the samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Generic, Protocol, TypeVar

import pyarrow as pa

from hpc.base.errors import ShardError
from hpc.operator import Damage, Shard
from recap.data.blocks import Block, ShardBlocks
from recap.data.kind import Wanted
from recap.data.kinds.table import Reading, check_layouts
from recap.data.remote import open_shard
from recap.data.tars import Sample

_THREADS = 16


class TableFile(Protocol):
    """An open file of a kind of table."""

    schema: pa.Schema

    def rows(self, reading: Reading, blocks: ShardBlocks) -> Iterator[Sample]:
        """All rows, which are also counted in `blocks`. What is wrong with the file is added to `reading.damages`."""


File = TypeVar("File", bound=TableFile)


class TableFiles(ABC, Generic[File]):
    """See `recap.data.kind.Kind`. Subclasses open a file, count its rows, and find and read its blocks."""

    name: str
    endings: tuple[str, ...]

    @abstractmethod
    def _opened(self, shard: Shard) -> AbstractContextManager[File | Damage]:
        """The open file, or what is wrong with it as a whole. ShardError, OSError: it cannot be opened."""

    @abstractmethod
    def _scan(self, file: File, wanted: Wanted) -> ShardBlocks:
        """The blocks of an open file."""

    @abstractmethod
    def _block(
        self, file: File, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]
    ) -> list[Sample]:
        """The samples of one block of an open file."""

    @abstractmethod
    def _count(self, uri: str) -> int | None:
        """The number of rows; None where the file cannot be read (its reader will say why)."""

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        """The number of rows that each file states."""
        wanted = [uri for uri in uris if how == self.name or (how == "auto" and "://" not in uri)]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = zip(wanted, pool.map(self._count, wanted), strict=True)
            return {uri: rows for uri, rows in counts if rows is not None}

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return check_layouts(shards, wanted, self._schema)

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """Blocks of all these files can be read alone."""

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        with self._opened(shard) as found:
            if isinstance(found, Damage):
                yield found
                return
            reading = Reading(found.schema, wanted)
            yield from found.rows(reading, blocks)
            blocks.ended = not reading.damages  # a scan reads less, and may find other keys in a damaged part
            if damage := reading.damage():
                yield damage

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        with self._opened(shard) as found:
            return ShardBlocks(damage=found) if isinstance(found, Damage) else self._scan(found, wanted)

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        with self._opened(shard) as found:
            return [] if isinstance(found, Damage) else self._block(found, shard, block, wanted, read)

    def _schema(self, shard: Shard) -> pa.Schema | None:
        with self._opened(shard) as found:
            return None if isinstance(found, Damage) else found.schema


@contextmanager
def open_seekable(shard: Shard) -> Iterator[IO[bytes]]:
    """A shard's file, which can be read in ranges. ShardError where its web server cannot do that."""
    with open_shard(shard) as file:
        if not file.seekable():
            raise ShardError("input: no ranges", f"{shard.uri}: the server sends whole files only: copy it to a disk")
        yield file
