"""Parquet files with images: the rows of a file are the samples of a shard. See `recap.data.kinds.table`.

A block begins in a row group (`origin`), behind so many of its rows (`skip`). Of a row group larger than a block, the
rows that other blocks will want are kept, up to `KEPT` bytes a process. A row group that cannot be read is as many
samples without an image: nothing after it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import ShardError
from hpc.base.remote_files import file_system
from hpc.operator import Damage, Shard
from recap.data.blocks import BLOCK, Block, ShardBlocks
from recap.data.headers import looks_like
from recap.data.kind import Wanted
from recap.data.kinds.kept import Kept
from recap.data.kinds.table import Keys, Layout, check_layouts, lacking
from recap.data.remote import open_shard
from recap.data.tars import Sample

KEPT = 256 << 20  # bytes of row groups that are kept for blocks to come
LOST = "in a damaged row group"
_BATCH = 32 << 20  # bytes of rows that are decoded at a time
_BUFFER = 1 << 20  # bytes of a column that are read at a time
_THREADS = 16


class Parquet:
    """See `recap.data.kind.Kind`."""

    name = "parquet"
    endings: tuple[str, ...] = (".parquet",)

    def __init__(self) -> None:
        self._kept: Kept[list[pa.RecordBatch]] = Kept(KEPT)

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        """From the footers."""
        wanted = [uri for uri in uris if how == "parquet" or (how == "auto" and "://" not in uri)]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = zip(wanted, pool.map(_rows_in, wanted), strict=True)
            return {uri: rows for uri, rows in counts if rows is not None}

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return check_layouts(shards, wanted, _schema)

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """There are, in all of them."""

    def samples(self, shard: Shard, wanted: Wanted) -> Generator[Sample | Damage]:
        with _opened(shard) as found:
            if isinstance(found, Damage):
                yield found
                return
            layout, first, damages = Layout(found.schema, wanted), 0, list[Damage]()
            keys = Keys(layout.key is not None)
            for group, count in enumerate(found.counts):
                batches = found.batches(group, layout.columns)
                yield from found.samples(group, 0, count, batches, first, layout, keys, damages)
                first += count
            damages = lacking(layout, wanted) + damages
            if damages:
                more = f"; {len(damages) - 1:,} more places" if len(damages) > 1 else ""
                yield Damage(damages[0].reason, damages[0].detail + more)

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        made = ShardBlocks()
        with _opened(shard) as found:
            if isinstance(found, Damage):
                made.damage = found
                return made
            layout = Layout(found.schema, Wanted(key=wanted.key))
            keys, first = Keys(layout.key is not None), 0
            sizes = [found.metadata.row_group(group).total_byte_size for group in range(len(found.counts))]
            starts = [0, *accumulate(max(size, 0) for size in sizes)]
            for group, count in enumerate(found.counts):
                own = found.own_keys(group, layout)
                for row in range(count) if layout.key else range(-first % BLOCK, count, BLOCK):
                    sample = keys.sample(own[row] if own else None, first + row)
                    made.problems += [(first + row, problem) for problem in sample.problems]
                    if (first + row) % BLOCK == 0:
                        made.first.append(sample.key)
                        made.start.append(starts[group] + sizes[group] * row // count)
                        made.origin.append(group)
                        made.skip.append(row)
                first += count
            made.start.append(starts[-1])
            made.count = [min(BLOCK, first - start) for start in range(0, first, BLOCK)]
        return made

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        samples: list[Sample] = []
        with _opened(shard) as found:
            if isinstance(found, Damage):
                return []
            layout = Layout(found.schema, wanted)
            keys, group, skip = Keys(layout.key is not None), block.origin, block.skip
            while len(samples) < block.count and group < len(found.counts):
                take = min(found.counts[group] - skip, block.count - len(samples))
                batches = self._batches(shard, found, group, layout, take, read)
                first = block.number * BLOCK + len(samples)
                samples += found.samples(group, skip, take, batches, first, layout, keys, [])
                group, skip = group + 1, 0
        return samples

    def _batches(
        self, shard: Shard, file: _File, group: int, layout: Layout, take: int, read: Callable[[int], None]
    ) -> Iterable[pa.RecordBatch]:
        """A row group's rows; kept where a block wants a part of them, and they are not too many."""
        size = file.bytes_of(group, layout.columns)

        def load() -> list[pa.RecordBatch]:
            read(size)
            return list(file.batches(group, layout.columns))

        if take < file.counts[group] and size <= KEPT:
            key = (shard.uri, shard.bytes, shard.etag, group, *layout.columns)
            try:
                return self._kept.of(key, load, lambda batches: sum(batch.nbytes for batch in batches))
            except (pa.ArrowException, OSError) as error:
                _raise_unless_damage(error)  # then what comes before the damage is read once more, without it
        read(size)
        return file.batches(group, layout.columns)


class _File:
    """An open file. counts: rows of each row group."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file, self.metadata, self.schema = file, file.metadata, file.schema_arrow
        self.counts = [self.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def bytes_of(self, group: int, columns: Sequence[str]) -> int:
        """Unpacked, as the footer says."""
        about = self.metadata.row_group(group)
        chunks = (about.column(at) for at in range(about.num_columns))
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if not columns:
            return  # nothing of the rows is wanted but their number
        each = self.bytes_of(group, columns) // max(self.counts[group], 1)
        size = max(1, min(BLOCK, _BATCH // max(each, 1)))
        yield from self._file.iter_batches(size, [group], columns=list(columns), use_threads=False)

    def samples(
        self,
        group: int,
        skip: int,
        take: int,
        batches: Iterable[pa.RecordBatch],
        first: int,
        layout: Layout,
        keys: Keys,
        damages: list[Damage],
    ) -> Iterator[Sample]:
        """Rows [skip, skip + take) of a row group, the first of which is row `first` of the file."""
        done, told = 0, len(damages)
        try:
            for batch in _cut(batches, skip, take):
                for sample in layout.samples(batch, first + done, keys):
                    done += 1
                    yield sample
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            damages.append(_damage(group, f"at its row {skip + done:,}: {_first_line(error)}"))
        if done == take:
            return
        own = self.own_keys(group, layout)
        if layout.columns and len(damages) == told:
            damages.append(_damage(group, f"has {skip + done:,} of its {self.counts[group]:,} rows"))
        for row in range(done, take):
            key = own[skip + row] if own else None
            yield layout.lost(key, first + row, LOST, keys)

    def own_keys(self, group: int, layout: Layout) -> list[bytes | None] | None:
        """What the key column says; None where there is none, or it cannot be read."""
        if layout.key is None:
            return None
        try:
            found = [key for batch in self.batches(group, [layout.key]) for key in layout.own_keys(batch)]
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            return None
        return found if len(found) == self.counts[group] else None


@contextmanager
def _opened(shard: Shard) -> Iterator[_File | Damage]:
    with open_shard(shard) as file:
        if not file.seekable():
            raise ShardError("input: no ranges", f"{shard.uri}: the server sends whole files only: copy it to a disk")
        found: pq.ParquetFile | Damage
        try:
            found = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            _raise_unless_damage(error)
            file.seek(0)
            start = file.read(16)
            looks = "" if start.startswith(b"PAR1") else f"; {looks_like(start)}"
            found = Damage("parquet: no footer that can be read", _first_line(error) + looks)
        yield found if isinstance(found, Damage) else _File(found)


def _schema(shard: Shard) -> pa.Schema | None:
    with _opened(shard) as found:
        return None if isinstance(found, Damage) else found.schema


def _rows_in(uri: str) -> int | None:
    """None where the file says nothing: who reads it says why."""
    try:
        system, path = file_system(uri)
        with system.open(path, "rb") as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except Exception:  # noqa: BLE001 - each store's client has exceptions of its own
        return None


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


def _raise_unless_damage(error: Exception) -> None:
    """Raise an error of the file system again: those have a number. The others are of the content."""
    if isinstance(error, OSError) and error.errno:
        raise error


def _damage(group: int, what: str) -> Damage:
    return Damage("parquet: a row group cannot be read", f"row group {group} {what}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
