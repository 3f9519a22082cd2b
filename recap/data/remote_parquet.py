"""A parquet file on an object store, opened by one request: for all of a small file, or for the end of a larger one,
which holds the footer.

Readers of blocks come back to a shard's file only once in many thousand blocks, so that reading the footer and then the
rows would be two requests for each block and column. The bytes of the first request serve the first rows; `forget`
drops them.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from recap.data.remote import SeekableFile, range_of

WHOLE = 1 << 20  # files up to so many bytes are read whole; captions of 10,000 images take about as many
FOOTER = 1 << 18  # bytes from the end of larger files; nearly always they hold the footer


class RemoteParquet(pq.ParquetFile):
    """A parquet file of an fsspec file system. size: its bytes; 0: the store is asked. FileNotFoundError: no such
    file."""

    def __init__(self, system: Any, path: str, size: int = 0) -> None:
        self._remote = _Remote(system, path, size or int(system.info(path)["size"]))
        super().__init__(self._remote, pre_buffer=True)

    def forget(self) -> None:
        """Drop the bytes that were read on opening. Rows are requested when they are wanted."""
        self._remote.end = None


class _Remote(SeekableFile):
    """end: the bytes from `_start` to the end of the file, read on opening; None once they were dropped."""

    def __init__(self, system: Any, path: str, size: int) -> None:
        super().__init__(size)
        self._system, self._path = system, path
        self._start = size - (size if size <= WHOLE else min(size, FOOTER))
        self.end: bytes | None = self._get(self._start, size)

    def _get(self, start: int, end: int) -> bytes:
        return range_of(self._system, self._path, start, end)

    def readinto(self, buffer: Any) -> int:
        start, end = self._position, min(self._position + len(buffer), self._size)
        if start >= end:
            return 0
        held = self.end
        if held is not None and start >= self._start:
            found = held[start - self._start : end - self._start]
        else:
            found = self._get(start, end)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)
