"""Finished samples of a shard that is not finished: one file a claim, written by the owner of that claim alone.

    <run>/segments/<identity8>/<bucket>/<id>.g<G>.e<k>.rows    frames, one behind the other

A frame holds consecutive samples, whole blocks of `map.segment` of them: its length, the first sample, the number of
rows, a sha256 of all of it, and an Arrow stream of one record batch. It is written at a known offset and forced to
storage before anybody is told. A reader takes frames up to the first that is short or wrong.

Nobody truncates, deletes or appends to the file of another claim: a file goes when its shard is marked done. So a
successor may read while a slot that was taken for dead still writes. What it found there is said in its own file, in
a frame without rows: stretches of the earlier files, in the order in which they count. Whoever reads after it, its own
publisher and its successors, counts these first, then what it saved itself, then what the others have added since. So
what comes late may add samples, and never replaces one.

An earlier version kept parquet files in a folder `<id>.g<G>/`, for all claims; such folders are still read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base import atomic

log = logging.getLogger(__name__)

SUFFIX = ".rows"

_HEAD = struct.Struct("<QQQ32s")  # bytes behind it, first sample, rows, sha256 of these three and of the bytes behind
_NUMBERS = struct.Struct("<QQQ")
_PACKED = pa.ipc.IpcWriteOptions(compression="zstd")


class Rows:
    """Rows of one shard by the index of their sample. Of several rows for one sample, the one added first counts."""

    def __init__(self) -> None:
        self._tables: dict[int, pa.Table] = {}
        self._known: set[int] = set()

    def add(self, first: int, table: pa.Table) -> list[tuple[int, pa.Table]]:
        """Take over those samples of [first, first + rows) that are not known yet; returns them."""
        span = range(first, first + table.num_rows)
        new = []
        for known, run in itertools.groupby(span, self._known.__contains__):
            if not known:
                indices = list(run)
                new.append((indices[0], table.slice(indices[0] - first, len(indices))))
        self._known.update(span)
        self._tables.update(new)
        return new

    def tables(self) -> dict[int, pa.Table]:
        """By first sample, in order."""
        return dict(sorted(self._tables.items()))

    def complete(self, count: int) -> bool:
        """Whether these are the samples 0 to `count` - 1."""
        return len(self._known) == count and self._known == set(range(count))

    def keys(self) -> list[str]:
        return [key for table in self.tables().values() for key in table["key"].to_pylist()]


class Stretch(NamedTuple):
    """The frames from `start` to `stop` (bytes) of a claim's file count. One with `start` = `stop` says that nothing
    before `stop` counts any more.
    """

    epoch: int
    start: int  # bytes
    stop: int


@dataclass(frozen=True)
class _Frame:
    start: int  # in the file
    stop: int
    first: int
    rows: int
    payload: memoryview


@dataclass
class _File:
    """What can be read of one claim's file."""

    frames: list[_Frame] = field(default_factory=list)
    size: int = 0  # bytes up to the first frame that is short or wrong
    found: list[Stretch] = field(default_factory=list)  # what its owner took over of the files before it
    void: bool = False  # its owner has seen that the input has changed: nothing saved before counts


class Segments:
    """The files of one generation of a shard.

    Args:
        folder: `Run.segments`: where files of an earlier version lie; the claims' own lie beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, epoch: int) -> Path:
        return self._folder.parent / f"{self._folder.name}.e{epoch}{SUFFIX}"

    def read(self, target: pa.Schema, epoch: int | None = None) -> tuple[Rows, list[Stretch]]:
        """The rows that count for the owner of `epoch`: those that it took over when it began and those that it saved
        itself. While it has saved nothing, it takes over what is there now. Without `epoch`: what the next owner would
        take over.

        Returns:
            The rows, and the stretches that hold them. Rows whose schema does not fit `target` are left out.
        """
        epochs = [e for e in self._epochs() if epoch is None or e <= epoch]
        files = {e: _read(self.path(e)) for e in epochs}
        if epoch in files and files[epoch].size:
            stretches = [*files[epoch].found, Stretch(epoch, 0, files[epoch].size)]
        else:
            stretches = _found(files)
        rows = Rows()
        for at, start, stop in stretches:
            for frame in files[at].frames if at in files else []:
                inside = frame.rows and start <= frame.start and frame.stop <= stop
                if inside and (table := _table(frame, target)) is not None:
                    rows.add(frame.first, table)
        return rows, stretches

    def of_earlier_version(self, target: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
        """(first sample, rows) of each file in the folder that an earlier version of this toolkit used. None where a
        later owner has found that the input changed.
        """
        try:
            names = sorted(os.listdir(self._folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        if any(_read(self.path(epoch)).void for epoch in self._epochs()):
            return
        for name in names:
            if not (match := re.fullmatch(r"(\d+)-(\d+)\.parquet", name)):
                continue
            try:
                table = pq.ParquetFile(self._folder / name, page_checksum_verification=True).read()
            except (OSError, pa.ArrowException):  # damaged, or gone with the finished shard: it is made again
                continue
            table = _conformed(table, target)
            if table is not None and table.num_rows == int(match[2]) - int(match[1]):
                yield int(match[1]), table

    def remove(self) -> None:
        """Remove all files. Only for a shard that is done: what a superseded owner still writes is never read."""
        for epoch in self._epochs():
            self.path(epoch).unlink(missing_ok=True)
        try:
            for name in os.listdir(self._folder):
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()
        except OSError:
            pass  # there is none, or an owner of an earlier version still writes there

    def _epochs(self) -> list[int]:
        try:
            names = os.listdir(self._folder.parent)
        except FileNotFoundError:
            return []
        pattern = re.compile(rf"{re.escape(self._folder.name)}\.e(\d+){re.escape(SUFFIX)}")
        return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


class Writer:
    """Appends frames to the file of one claim, which its owner alone makes.

    Args:
        found: what the owner has taken over, see `Segments.read`.
    """

    def __init__(self, path: Path, found: list[Stretch]) -> None:
        self._path, self._fd = path, -1
        self._begin = _note({"found": found})  # the first frame, written with the first rows
        self._offset = 0  # the file is whole up to here; what a failed write left behind is written over
        self._listed = False  # whether the file's name was forced to storage

    def append(self, tables: Iterable[tuple[int, pa.Table]], *, sync: bool = True) -> None:
        """Write tables, each with the index of its first row, as a frame each.

        Args:
            sync: force them to storage. Without it they outlive the process, not the machine.

        Raises:
            OSError: nothing is written that a reader would take.
        """
        self._write(b"".join(_frame(first, table.num_rows, _packed(table)) for first, table in tables), sync)

    def void(self) -> None:
        """Record that the input has changed, so that nothing saved so far counts."""
        self._write(_note({"void": True}), True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes, sync: bool) -> None:
        if self._fd < 0:
            self._fd = self._create()
        if self._offset == 0:
            data = self._begin + data
        left, at = memoryview(data), self._offset
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written
        if sync:
            os.fdatasync(self._fd)
            if not self._listed:
                atomic.sync(self._path.parent)
                self._listed = True
        self._offset = at

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            atomic.make_below(self._path.parent, 2)  # of <run>/segments
            return os.open(self._path, flags, 0o666)


def _found(files: dict[int, _File]) -> list[Stretch]:
    """What the owner after these takes over: first all that the last of them had, then what was added to the other
    files since that one began.
    """
    if not files:
        return []
    top = max(files)
    stretches = [*files[top].found, Stretch(top, 0, files[top].size)]
    known = {at: stop for at, _, stop in sorted(stretches, key=lambda stretch: stretch.stop)}
    if files[top].void:
        return [Stretch(at, file.size, file.size) for at, file in files.items()]
    return stretches + [
        Stretch(at, known.get(at, 0), file.size) for at, file in sorted(files.items()) if file.size > known.get(at, 0)
    ]


def _read(path: Path) -> _File:
    found = _File()
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:  # the shard was finished meanwhile
        return found
    except OSError as error:
        log.warning("%s cannot be read, what it holds is made again: %s", path, error)
        return found
    while len(data) - found.size >= _HEAD.size:
        length, first, rows, digest = _HEAD.unpack_from(data, found.size)
        start = found.size + _HEAD.size
        payload = data[start : start + length]
        if len(payload) < length or _digest(first, rows, payload) != digest:
            break
        if not rows:
            note = json.loads(bytes(payload))
            found.found += [Stretch(*stretch) for stretch in note.get("found", [])]
            found.void |= note.get("void", False)
        found.frames.append(_Frame(found.size, start + length, first, rows, payload))
        found.size = start + length
    return found


def _note(facts: dict[str, object]) -> bytes:
    """A frame without rows, which holds JSON."""
    return _frame(0, 0, json.dumps(facts).encode())


def _frame(first: int, rows: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), first, rows, _digest(first, rows, payload)) + payload


def _digest(first: int, rows: int, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(_NUMBERS.pack(len(payload), first, rows))
    digest.update(payload)
    return digest.digest()


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_PACKED) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _table(frame: _Frame, target: pa.Schema) -> pa.Table | None:
    try:
        table = _conformed(pa.ipc.open_stream(frame.payload).read_all(), target)
    except pa.ArrowException as error:  # of a later version
        log.warning("saved samples from %d on cannot be read, they are made again: %s", frame.first, error)
        return None
    return table if table is not None and table.num_rows == frame.rows else None


def _conformed(table: pa.Table, target: pa.Schema) -> pa.Table | None:
    """The table with the columns of `target`: fields that an earlier version of the code did not write are null. None
    where more than that differs.
    """
    if table.schema.equals(target):
        return table
    missing = [field for field in target if field.name not in table.column_names]
    for field_ in missing:
        table = table.append_column(field_, pa.nulls(len(table), field_.type))
    same = len(table.column_names) == len(target)
    table = table.select(target.names) if same else table
    return table.cast(target) if same and table.schema.equals(target) else None
