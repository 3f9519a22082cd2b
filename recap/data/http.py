"""Tars on web servers, which may not support range requests, and may not say how long a file is.

Requests go through fsspec's own session, so that its configuration (headers, authentication, proxies) holds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from hpc.base.errors import ShardError

_WAIT_S = 60.0  # timeout for a connection, and between two pieces of an answer


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of a file. size: bytes, None where it does not say. ranges: it answers range requests."""

    size: int | None
    etag: str
    ranges: bool


def _sync(loop: Any, function: Any, *arguments: Any) -> Any:
    """The result of a coroutine, run in the thread of fsspec's event loop."""
    from fsspec.asyn import sync  # it brings asyncio along, see hpc.base.remote_files

    return sync(loop, function, *arguments)


def facts(system: Any, url: str) -> Facts:
    """A file's facts, from a request for its first byte: the answer shows whether ranges work, whatever is
    announced."""
    return _sync(system.loop, _facts, system, url)


def read_range(system: Any, url: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file. ShardError where the server does not answer with a range."""
    return _sync(system.loop, _read_range, system, url, start, end)


class Stream(io.RawIOBase):
    """A file from a server without ranges: one request, read once from start to end."""

    def __init__(self, system: Any, url: str, size: int | None) -> None:
        self._loop, self._url, self._size = system.loop, url, size
        self._reply = _sync(self._loop, _get, system, url)
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = _sync(self._loop, self._reply.content.read, len(buffer))
        except Exception as error:  # aiohttp has exceptions of its own
            raise self._lost(str(error) or type(error).__name__) from error
        if not data and self._size is not None and self._position < self._size:
            raise self._lost(f"{self._size:,} were announced")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            _sync(self._loop, _close, self._reply)
        super().close()

    def _lost(self, why: str) -> ShardError:
        where = f"{self._url}: after {self._position:,} bytes, and the server has no ranges to go on with: {why}"
        return ShardError("input: connection lost", where)


async def _get(system: Any, url: str, span: str | None = None) -> Any:
    from aiohttp import ClientTimeout

    session = await system.set_session()
    settings = {"timeout": ClientTimeout(total=None, sock_connect=_WAIT_S, sock_read=_WAIT_S), **system.kwargs}
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity"}
    if span is not None:
        headers["Range"] = f"bytes={span}"
    reply = await session.get(system.encode_url(url), headers=headers, **settings)
    if reply.status != 416:
        reply.raise_for_status()
    return reply


async def _facts(system: Any, url: str) -> Facts:
    reply = await _get(system, url, "0-0")
    try:
        said, etag = reply.headers, reply.headers.get("ETag", "").strip('"')
        total = said.get("Content-Range", "").rpartition("/")[2]
        if reply.status in (206, 416) and total.isdigit():
            return Facts(int(total), etag, ranges=True)
        length = said.get("Content-Length", "") if reply.status == 200 and "Content-Encoding" not in said else ""
        return Facts(int(length) if length.isdigit() else None, etag, ranges=False)
    finally:
        reply.close()  # a server without ranges would send all of the file


async def _read_range(system: Any, url: str, start: int, end: int) -> bytes:
    reply = await _get(system, url, f"{start}-{end - 1}")
    try:
        if reply.status != 206:
            raise ShardError("input: no ranges", f"{url}: asked for {end - start:,} bytes, the server sends the file")
        return await reply.read()
    finally:
        reply.close()


async def _close(reply: Any) -> None:
    reply.close()
