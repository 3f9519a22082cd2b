"""Opening a shard, wherever it is: local files as they are, objects of a store in checked ranges, with retries.

An object store answers 503, hangs, or ends a body early; none of these may look like a short shard. Every range is
compared with the length that was asked for, and the object with the version that the plan saw.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from hpc.base import remote_files
from hpc.base.errors import ShardError
from hpc.base.remote_files import file_system, is_web
from hpc.operator import Shard
from recap.data import http

RANGE = 8 << 20  # bytes of a request
TRIES = 8  # attempts to read one range
_HOPELESS = {  # answers of web servers after which no retry helps
    401: "input: forbidden", 403: "input: forbidden", 404: "input: does not exist", 410: "input: does not exist",
}  # fmt: skip


def open_shard(shard: Shard) -> IO[bytes]:
    """The shard's bytes. The file is seekable, unless a web server does not support range requests.

    Raises:
        ShardError: it is gone, forbidden, or no longer the file that was planned.
    """
    if "://" not in shard.uri:
        try:
            file = open(shard.uri, "rb")  # noqa: SIM115 - returned open
        except FileNotFoundError as error:
            raise ShardError("input: does not exist", shard.uri) from error
        _compare(shard, os.fstat(file.fileno()).st_size, "")
        return file
    system, path = file_system(shard.uri)
    said = retry(lambda: _facts(system, path), shard.uri)
    if said.size is None and not is_web(system):
        raise ShardError("input: size unknown", shard.uri)
    size = shard.bytes if said.size is None else said.size
    if not shard.bytes:  # planned without a listing (http): the size is known only now
        shard = replace(shard, bytes=size)
    _compare(shard, size, said.etag)
    if not said.ranges:
        stream = retry(lambda: http.Stream(system, path, said.size), shard.uri)
        return cast(IO[bytes], io.BufferedReader(stream, 1 << 20))
    read = partial(_checked_range, system, path, shard.uri)
    return cast(IO[bytes], io.BufferedReader(Ranges(read, shard.bytes, RANGE), 1 << 20))


def fetch(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file; requests to a store are retried. ShardError where they cannot be read."""
    if "://" not in uri:
        return _local(uri, start, end)
    system, path = file_system(uri)
    return _checked_range(system, path, uri, start, end)


def _checked_range(system: Any, path: str, uri: str, start: int, end: int) -> bytes:
    return retry(lambda: range_of(system, path, start, end), uri)


def _local(path: str, start: int, end: int) -> bytes:
    pieces = []
    with open(path, "rb", buffering=0) as file:
        while start < end and (piece := os.pread(file.fileno(), end - start, start)):
            pieces.append(piece)
            start += len(piece)
    return b"".join(pieces)


def _facts(system: Any, path: str) -> http.Facts:
    if is_web(system):
        return http.facts(system, path)
    info = system.info(path)
    size = info.get("size")
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return http.Facts(None if size is None else int(size), etag, ranges=True)


def _compare(shard: Shard, size: int, etag: str) -> None:
    if size != shard.bytes:
        raise ShardError("input: changed since the plan", f"{shard.uri} had {shard.bytes:,} bytes, now {size:,}")
    if etag and shard.etag and etag != shard.etag:
        raise ShardError("input: changed since the plan", f"{shard.uri} had ETag {shard.etag}, now {etag}")


class SeekableFile(io.RawIOBase):
    """A read-only file of known size, in bytes, at a position. Subclasses define `readinto`."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position


class Ranges(SeekableFile):
    """A file that is read in ranges, one `piece` at a time. Pieces that are skipped are not requested.

    Args:
        read: returns bytes [start, end) of the file.
        size: bytes of the file.
        piece: bytes of a request; as many are held.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, piece: int) -> None:
        super().__init__(size)
        self._read, self._piece = read, piece
        self._held, self._start = memoryview(b""), 0

    def readinto(self, buffer: Any) -> int:
        if not self._start <= self._position < self._start + len(self._held):
            start, end = self._position, min(self._position + self._piece, self._size)
            if start >= end:
                return 0
            self._held = memoryview(b"")  # one piece at a time
            self._held, self._start = memoryview(self._read(start, end)), start
        piece = self._held[self._position - self._start :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def range_of(system: Any, path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a store's object, by one request. ConnectionError where the answer has another length."""
    if is_web(system):
        data = http.read_range(system, path, start, end)
    else:  # the Hub's file system opens a file, whose cache would read 5 MiB ahead
        unbuffered = {"cache_type": "none"} if system.protocol == "hf" else {}
        data = system.cat_file(path, start=start, end=end, **unbuffered)
    if len(data) != end - start:
        raise ConnectionError(f"asked for {end - start:,} bytes at {start:,}, got {len(data):,}")
    return data


def retry(call: Callable[[], Any], uri: str) -> Any:
    """The result of a request to a store. Raises ShardError when it is hopeless or all tries are used up."""
    try:
        return remote_files.retry(call, Path(uri).name, TRIES, _is_final)
    except ShardError:
        raise
    except FileNotFoundError as error:
        raise ShardError("input: does not exist", uri) from error
    except PermissionError as error:
        raise ShardError("input: forbidden", f"{uri}: {error}") from error
    except Exception as error:
        if (hopeless := _HOPELESS.get(getattr(error, "status", 0))) is not None:
            raise ShardError(hopeless, f"{uri}: {error}") from error
        raise ShardError(
            "input: object store does not answer", f"{uri}: {TRIES} tries, last: {error}", transient=True
        ) from error


def _is_final(error: Exception) -> bool:
    return isinstance(error, (ShardError, FileNotFoundError, PermissionError)) or (
        getattr(error, "status", 0) in _HOPELESS
    )
