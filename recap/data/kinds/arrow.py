"""Arrow files with images, as `datasets`' save_to_disk writes them: record batches one after another. The rows of a
file are the samples of a shard; see `recap.data.kinds.table`.

`Block.origin` is the byte of the record batch in which a block begins, `Block.skip` how many rows of it come before the
block. One pass over the batches' headers finds all blocks. The format is Arrow's "Serialization and Interprocess
Communication", streaming. A file of the random access format holds a stream behind its first eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import Damage, Shard
from recap.data.blocks import BLOCK, Block, ShardBlocks
from recap.data.headers import looks_like
from recap.data.kind import Wanted
from recap.data.kinds.bounded_cache import BoundedCache
from recap.data.kinds.table import KEPT, Reading, batch_rows, first_line, raise_unless_damage
from recap.data.kinds.table_files import TableFiles, open_seekable
from recap.data.tars import Sample

LOST, ENCODED = "in a damaged batch", "arrow: dictionary-encoded columns"
_MAGIC = b"ARROW1"  # of the random access format
_CONTINUES = b"\xff\xff\xff\xff"
_SCHEMA, _BATCH = 1, 3  # kinds of messages
_LARGEST_HEADER = 1 << 26  # bytes


class Arrow(TableFiles["_Stream"]):
    """See `recap.data.kind.Kind`."""

    name = "arrow"
    endings: tuple[str, ...] = (".arrow",)

    def __init__(self) -> None:
        self._cache: BoundedCache[pa.RecordBatch] = BoundedCache(KEPT)

    def _opened(self, shard: Shard) -> AbstractContextManager[_Stream | Damage]:
        return _opened(shard)

    def _count(self, uri: str) -> int | None:
        """The number of rows, by the batches' headers."""
        try:
            with open(uri, "rb") as file:
                stream = _Stream(file)
                return sum(batch.rows for batch in stream.batches(stream.begin))
        except (OSError, pa.ArrowException, struct.error):
            return None

    def _schema(self, shard: Shard) -> pa.Schema | None:
        with _opened(shard) as found:
            if isinstance(found, Damage) and found.reason == ENCODED:
                raise UserError(f"data: {shard.uri}: {found.reason}: {found.detail}")
            return None if isinstance(found, Damage) else found.schema

    def _scan(self, file: _Stream, wanted: Wanted) -> ShardBlocks:
        made = ShardBlocks()
        reading, first, end = Reading(file.schema, Wanted(key=wanted.key)), 0, file.begin
        for batch in file.batches(file.begin):
            rows: Iterable[tuple[int, Sample]]
            if reading.layout.key is None:
                begin = range(-first % BLOCK, batch.rows, BLOCK)
                rows = ((row, reading.keys.sample(None, first + row)) for row in begin)
            else:
                rows = enumerate(_rows(file.read, batch, 0, batch.rows, first, reading))
            for row, sample in rows:
                made.add_row(first + row, sample, batch.start(row), batch.at, row)
            first, end = first + batch.rows, batch.at + batch.size
        made.close(first, end)
        made.damage = file.damage
        return made

    def _block(
        self, file: _Stream, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]
    ) -> list[Sample]:
        samples: list[Sample] = []

        def batch_of(batch: _Batch) -> pa.RecordBatch:
            read(batch.size)
            return file.read(batch)

        def cached(batch: _Batch) -> pa.RecordBatch:
            key = (shard.uri, shard.bytes, shard.etag, batch.at)
            return self._cache.get_or_make(key, lambda: batch_of(batch), lambda made: made.nbytes)

        reading, skip = Reading(file.schema, wanted), block.skip
        for batch in file.batches(block.origin):
            take = min(batch.rows - skip, block.count - len(samples))
            get = cached if take < batch.rows and batch.size <= KEPT else batch_of
            samples += _rows(get, batch, skip, take, block.number * BLOCK + len(samples), reading)
            skip = 0
            if len(samples) >= block.count:
                break
        return samples


@dataclass(frozen=True, slots=True)
class _Batch:
    """A record batch. at, size: first byte of its message, and the message's bytes. rows: how many it has."""

    at: int
    size: int
    rows: int

    def start(self, row: int) -> int:
        """The byte at which a row would begin if all rows had the same size."""
        return self.at + self.size * row // self.rows


class _Stream:
    """An open file. begin: byte of the stream's schema. damage: why `batches` ended before the file did, else None."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.damage: Damage | None = None
        self._length = file.seek(0, 2)
        file.seek(0)
        self.begin = 8 if file.read(len(_MAGIC)) == _MAGIC else 0
        found = self._message(self.begin)
        if found is None or found[0] != _SCHEMA:
            raise pa.ArrowInvalid("it does not begin with a schema")
        self.schema = pa.ipc.read_schema(pa.BufferReader(self._bytes(self.begin, found[1])))

    def _bytes(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return self._file.read(size)

    def _message(self, at: int) -> tuple[int, int, int] | None:
        """(kind, bytes of header and body, rows) of the message at byte `at`; None at the end of the stream.

        Raises:
            ArrowInvalid: there is no message.
        """
        start = self._bytes(at, 8)
        continues = start[:4] == _CONTINUES
        length = int.from_bytes(start[4:8] if continues else start[:4], "little", signed=True)
        if len(start) < (8 if continues else 4):
            raise pa.ArrowInvalid("the file ends without the mark of its end" if not start else "cut off")
        if length == 0:
            return None
        if not 0 < length <= _LARGEST_HEADER:
            raise pa.ArrowInvalid("no header of a message")
        prefix = 8 if continues else 4
        header = self._bytes(at + prefix, length)
        kind, body, rows = _parsed(header)
        return kind, prefix + length + body, rows

    def batches(self, at: int) -> Iterator[_Batch]:
        """The record batches from byte `at` on, by their headers alone."""
        while True:
            try:
                found = self._message(at)
            except (pa.ArrowException, struct.error) as error:
                self.damage = Damage("arrow: damaged", f"at byte {at:,}: {first_line(error)}")
                return
            if found is None:
                return
            kind, size, rows = found
            if at + size > self._length:
                what = f"at byte {at:,} is a message of {size:,} bytes, {self._length - at:,} are there"
                self.damage = Damage("arrow: ends in the middle of a batch", what)
                return
            if rows > 8 * size:  # any column takes at least one bit a row
                self.damage = Damage("arrow: damaged", f"at byte {at:,}: {rows:,} rows in {size:,} bytes")
                return
            if kind == _BATCH:
                yield _Batch(at, size, rows)
            at += size

    def rows(self, reading: Reading, blocks: ShardBlocks) -> Iterator[Sample]:
        first, end = 0, self.begin
        for batch in self.batches(self.begin):
            for row, sample in enumerate(_rows(self.read, batch, 0, batch.rows, first, reading)):
                blocks.add_row(first + row, sample, batch.start(row), batch.at, row)
                yield sample
            first, end = first + batch.rows, batch.at + batch.size
        blocks.close(first, end)
        reading.damages += [self.damage] if self.damage else []

    def read(self, batch: _Batch) -> pa.RecordBatch:
        """The rows of a batch, validated. ArrowInvalid, OSError: it is damaged."""
        room = pa.allocate_buffer(batch.size)  # Arrow's pool reuses the memory of the batch before
        self._file.seek(batch.at)
        read = self._file.readinto(room)  # type: ignore[attr-defined]
        message = pa.ipc.read_message(pa.BufferReader(room.slice(0, read)))
        found = pa.ipc.read_record_batch(message, self.schema)
        found.validate(full=True)  # offsets past the end of a buffer would crash the process
        return found


def _parsed(header: bytes) -> tuple[int, int, int]:
    """(kind, bytes of the body, rows of a record batch) of a message's header, which is a flatbuffer.

    Raises:
        struct.error: it is damaged.
    """

    def number(form: str, at: int) -> int:
        if at < 0:
            raise struct.error("a place before the beginning")
        return int(struct.unpack_from(form, header, at)[0])

    def field(table: int, which: int) -> int:
        """The byte of a field of the flatbuffer table at byte `table`; 0 where it is not stored."""
        places = table - number("<i", table)
        held = 4 + 2 * which < number("<H", places)
        at = number("<H", places + 4 + 2 * which) if held else 0
        return table + at if at else 0

    message = number("<I", 0)
    kind, content, body = (field(message, which) for which in (1, 2, 3))
    rows = field(content + number("<I", content), 0) if content else 0
    sizes = number("<q", body) if body else 0, number("<q", rows) if rows else 0
    if min(sizes) < 0:
        raise struct.error("a size below zero")
    return number("<B", kind) if kind else 0, *sizes


def _rows(
    read: Callable[[_Batch], pa.RecordBatch], batch: _Batch, skip: int, take: int, first: int, reading: Reading
) -> Iterator[Sample]:
    """Rows [skip, skip + take) of a batch as samples. first: the number of the first of them in the file."""
    try:
        found = read(batch).slice(skip, take)
    except (pa.ArrowException, OSError) as error:
        raise_unless_damage(error)
        what = f"at byte {batch.at:,}: {first_line(error)}"
        reading.damages.append(Damage("arrow: a batch cannot be read", what))
        yield from reading.lost(first, take, LOST)
        return
    step = batch_rows(batch.size, batch.rows)
    for start in range(0, take, step):
        yield from reading.samples(found.slice(start, step), first + start)


@contextmanager
def _opened(shard: Shard) -> Iterator[_Stream | Damage]:
    with open_seekable(shard) as file:
        found: _Stream | Damage
        try:
            found = _Stream(file)
        except (pa.ArrowException, OSError, struct.error) as error:
            raise_unless_damage(error)
            file.seek(0)
            found = Damage("arrow: not an arrow stream", f"{first_line(error)}; {looks_like(file.read(16))}")
        if isinstance(found, _Stream) and (names := _encoded(found.schema)):
            found = Damage(ENCODED, f"{', '.join(names)}: not read, write them plainly")
        yield found


def _encoded(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_dictionary(field.type)]
