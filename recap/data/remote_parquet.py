"""A parquet file on an object store, opened by one request: that brings all of a small file, of others the footer.

Readers of blocks come to a shard's file once in many thousand blocks, so that a footer and some rows, asked for one
after the other, would be two requests a block and column. What was brought is kept for the first rows alone.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq

from recap.data.remote import range_of

WHOLE = 1 << 20  # bytes of a file up to which all of it is asked for: captions of 10,000 images have about as many
FOOTER = 1 << 18  # bytes from the end of other files, which nearly always hold their footer


class RemoteParquet(pq.ParquetFile):
    """One of fsspec's files. size: its bytes; 0: they are asked for. FileNotFoundError where there is none."""

    def __init__(self, system: Any, path: str, size: int = 0) -> None:
        self._remote = _Remote(system, path, size or int(system.info(path)["size"]))
        super().__init__(self._remote, pre_buffer=True)

    def forget(self) -> None:
        """Let go of what was brought when it was opened; other rows are asked for as they are wanted."""
        self._remote.end = None


class _Remote(io.RawIOBase):
    def __init__(self, system: Any, path: str, size: int) -> None:
        self._system, self._path, self._size = system, path, size
        self._position = 0
        self._start = size - (size if size <= WHOLE else min(size, FOOTER))
        self.end: bytes | None = self._get(self._start, size)

    def _get(self, start: int, end: int) -> bytes:
        return range_of(self._system, self._path, start, end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

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
