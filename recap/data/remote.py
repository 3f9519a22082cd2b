"""Opening a shard, wherever it is: local files as they are, objects in checked ranges that are asked for again when
a reply fails.

An object store answers 503, hangs, or ends a body early; none of these may look like a short shard. Every range is
compared with the length that was asked for, and the object with the version that the plan saw.
"""

from __future__ import annotations

import io
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from hpc.errors import ShardError
from hpc.operator import Shard

log = logging.getLogger(__name__)

RANGE = 8 << 20  # bytes a request
TRIES = 8  # of one range
LONGEST_PAUSE_S = 20.0


def open_shard(shard: Shard) -> IO[bytes]:
    """The shard's bytes, for sequential reading.

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
    system, path = fsspec.core.url_to_fs(shard.uri)
    info = retry(lambda: system.info(path), shard.uri)
    size = int(info.get("size") or 0)
    if not shard.bytes:  # planned without a listing (http): the size is known only now
        shard = replace(shard, bytes=size)
    _compare(shard, size, str(info.get("ETag") or info.get("etag") or "").strip('"'))
    return cast(IO[bytes], io.BufferedReader(_Ranges(system, path, shard), 1 << 20))


def _compare(shard: Shard, size: int, etag: str) -> None:
    if size != shard.bytes:
        raise ShardError("input: changed since the plan", f"{shard.uri} had {shard.bytes:,} bytes, now {size:,}")
    if etag and shard.etag and etag != shard.etag:
        raise ShardError("input: changed since the plan", f"{shard.uri} had ETag {shard.etag}, now {etag}")


class _Ranges(io.RawIOBase):
    """An object as a file that is read once from its start to its end."""

    def __init__(self, system: Any, path: str, shard: Shard) -> None:
        self._system, self._path, self._shard = system, path, shard
        self._position = 0
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._held:
            start, end = self._position, min(self._position + RANGE, self._shard.bytes)
            if start == end:
                return 0
            self._held = memoryview(retry(lambda: self._range(start, end), self._shard.uri))
        target = memoryview(buffer)
        count = min(len(target), len(self._held))
        target[:count] = self._held[:count]
        self._held = self._held[count:]
        self._position += count
        return count

    def _range(self, start: int, end: int) -> bytes:
        data = self._system.cat_file(self._path, start=start, end=end)
        if len(data) != end - start:
            raise ConnectionError(f"asked for {end - start:,} bytes at {start:,}, got {len(data):,}")
        return data


def retry(call: Callable[[], Any], uri: str) -> Any:
    """The result of a request, tried again with growing, jittered pauses.

    ShardError when it is hopeless or the budget is spent.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except FileNotFoundError as error:
            raise ShardError("input: does not exist", uri) from error
        except PermissionError as error:
            raise ShardError("input: forbidden", f"{uri}: {error}") from error
        except Exception as error:  # each store's client has exceptions of its own
            if attempt == TRIES:
                raise ShardError(
                    "input: object store does not answer", f"{uri}: {TRIES} tries, last: {error}"
                ) from error
            pause = min(LONGEST_PAUSE_S, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)
            log.warning("%s: %s: trying again in %.1f s (%d of %d)", Path(uri).name, error, pause, attempt, TRIES)
            time.sleep(pause)
    raise AssertionError("unreachable")
