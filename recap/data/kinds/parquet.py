"""Parquet files with images: the rows of a file are the samples of a shard. See `recap.data.kinds.table`.

`Block.origin` is the number of the row group in which a block begins, `Block.skip` how many rows of it come before the
block. Of a row group larger than a block, all rows are kept in memory for later blocks, up to `KEPT` bytes a process.
The rows of a row group that cannot be read become samples without an image, so that the numbers of later rows do not
change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.remote_files import file_system
from hpc.operator import Damage, Shard
from recap.data.blocks import BLOCK, Block, ShardBlocks
from recap.data.headers import looks_like
from recap.data.kind import Wanted
from recap.data.kinds.bounded_cache import BoundedCache
from recap.data.kinds.table import KEPT, Layout, Reading, batch_rows, first_line, raise_unless_damage
from recap.data.kinds.table_files import TableFiles, open_seekable
from recap.data.tars import Sample

LOST = "in a damaged row group"
_BUFFER = 1 << 20  # bytes of a column that are read at once


class Parquet(TableFiles["_File"]):
    """See `recap.data.kind.Kind`."""

    name = "parquet"
    endings: tuple[str, ...] = (".parquet",)

    def __init__(self) -> None:
        self._cache: BoundedCache[list[pa.RecordBatch]] = BoundedCache(KEPT)

    def _opened(self, shard: Shard) -> AbstractContextManager[_File | Damage]:
        return _opened(shard)

    def _count(self, uri: str) -> int | None:
        """The number of rows, by the footer."""
        try:
            system, path = file_system(uri)
            with system.open(path, "rb") as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        except Exception:  # noqa: BLE001 - each store's client has exceptions of its own
            return None

    def _scan(self, file: _File, wanted: Wanted) -> ShardBlocks:
        made = ShardBlocks()
        reading, first = Reading(file.schema, Wanted(key=wanted.key)), 0
        layout, keys = reading.layout, reading.keys
        for group, count in enumerate(file.counts):
            own = file.own_keys(group, layout)
            for row in range(count) if layout.key else range(-first % BLOCK, count, BLOCK):
                sample = keys.sample(own[row] if own else None, first + row)
                made.add_row(first + row, sample, file.start(group, row), group, row)
            first += count
        made.close(first, file.end)
        return made

    def _block(
        self, file: _File, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]
    ) -> list[Sample]:
        samples: list[Sample] = []
        reading, group, skip = Reading(file.schema, wanted), block.origin, block.skip
        while len(samples) < block.count and group < len(file.counts):
            take = min(file.counts[group] - skip, block.count - len(samples))
            batches = self._batches(shard, file, group, reading.layout.columns, take, read)
            first = block.number * BLOCK + len(samples)
            samples += file.samples(group, skip, take, batches, first, reading)
            group, skip = group + 1, 0
        return samples

    def _batches(
        self, shard: Shard, file: _File, group: int, columns: Sequence[str], take: int, read: Callable[[int], None]
    ) -> Iterable[pa.RecordBatch]:
        """A row group's rows. They are kept in memory where a block wants only a part of them, and KEPT allows it."""
        size = file.bytes_of(group, columns)

        def load() -> list[pa.RecordBatch]:
            read(size)
            return list(file.batches(group, columns))

        if take < file.counts[group] and size <= KEPT:
            key = (shard.uri, shard.bytes, shard.etag, group, *columns)
            try:
                return self._cache.get_or_make(key, load, lambda batches: sum(batch.nbytes for batch in batches))
            except (pa.ArrowException, OSError) as error:
                raise_unless_damage(error)  # the rows before the damage are then read as a stream, below
        read(size)
        return file.batches(group, columns)


class _File:
    """An open file. counts: rows of each row group."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file, self.metadata, self.schema = file, file.metadata, file.schema_arrow
        groups = [self.metadata.row_group(group) for group in range(file.num_row_groups)]
        self.counts = [about.num_rows for about in groups]
        self._sizes = [about.total_byte_size for about in groups]
        self._starts = [0, *accumulate(max(size, 0) for size in self._sizes)]

    @property
    def end(self) -> int:
        """Bytes of all row groups together."""
        return self._starts[-1]

    def start(self, group: int, row: int) -> int:
        """The byte at which a row would begin if all rows of its group had the same size."""
        return self._starts[group] + self._sizes[group] * row // self.counts[group]

    def rows(self, reading: Reading, blocks: ShardBlocks) -> Iterator[Sample]:
        first, columns = 0, reading.layout.columns
        for group, count in enumerate(self.counts):
            samples = self.samples(group, 0, count, self.batches(group, columns), first, reading)
            for row, sample in enumerate(samples):
                blocks.add_row(first + row, sample, self.start(group, row), group, row)
                yield sample
            first += count
        blocks.close(first, self.end)

    def bytes_of(self, group: int, columns: Sequence[str]) -> int:
        """Bytes of a row group's columns, uncompressed, as the footer states them."""
        about = self.metadata.row_group(group)
        chunks = (about.column(at) for at in range(about.num_columns))
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if not columns:
            return  # only the number of rows is wanted
        size = batch_rows(self.bytes_of(group, columns), self.counts[group])
        yield from self._file.iter_batches(size, [group], columns=list(columns), use_threads=False)

    def samples(
        self, group: int, skip: int, take: int, batches: Iterable[pa.RecordBatch], first: int, reading: Reading
    ) -> Iterator[Sample]:
        """Rows [skip, skip + take) of a row group as samples. first: the number of the first of them in the file."""
        done, problem = 0, ""
        try:
            for batch in _cut(batches, skip, take):
                for sample in reading.samples(batch, first + done):
                    done += 1
                    yield sample
        except (pa.ArrowException, OSError) as error:
            raise_unless_damage(error)
            problem = f"at its row {skip + done:,}: {first_line(error)}"
        if done == take:
            return
        lost = LOST if reading.layout.columns else ""  # without columns, only the number of rows is wanted
        if lost:
            what = f"row group {group} {problem or f'ends at its row {skip + done:,}'}"
            reading.damages.append(Damage("parquet: a row group cannot be read", what))
        own = self.own_keys(group, reading.layout)
        yield from reading.lost(first + done, take - done, lost, own[skip + done :] if own else None)

    def own_keys(self, group: int, layout: Layout) -> list[bytes | None] | None:
        """The key column's values in a row group; None where there is no such column, or it cannot be read."""
        if layout.key is None:
            return None
        try:
            found = [key for batch in self.batches(group, [layout.key]) for key in layout.own_keys(batch)]
        except (pa.ArrowException, OSError) as error:
            raise_unless_damage(error)
            return None
        return found if len(found) == self.counts[group] else None


@contextmanager
def _opened(shard: Shard) -> Iterator[_File | Damage]:
    with open_seekable(shard) as file:
        found: pq.ParquetFile | Damage
        try:
            found = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
            _check_counts(found.metadata)
        except (pa.ArrowException, OSError) as error:
            raise_unless_damage(error)
            file.seek(0)
            start = file.read(16)
            looks = "" if start.startswith(b"PAR1") else f"; {looks_like(start)}"
            found = Damage("parquet: no footer that can be read", first_line(error) + looks)
        yield found if isinstance(found, Damage) else _File(found)


def _check_counts(footer: pq.FileMetaData) -> None:
    """ArrowInvalid where a row group claims more rows than one of its columns has values, or a negative number."""
    for group in range(footer.num_row_groups):
        about = footer.row_group(group)
        values = min((about.column(at).num_values for at in range(about.num_columns)), default=0)
        if not 0 <= about.num_rows <= values:
            raise pa.ArrowInvalid(f"row group {group} of {about.num_rows:,} rows has a column of {values:,} values")


def _cut(batches: Iterable[pa.RecordBatch], skip: int, take: int) -> Iterator[pa.RecordBatch]:
    """Rows [skip, skip + take) of consecutive batches."""
    for batch in batches:
        part = batch.slice(skip, take)
        skip = max(skip - batch.num_rows, 0)
        if part.num_rows:
            take -= part.num_rows
            yield part
        if not take:
            return
