"""An object store whose every answer takes a while: the part of S3's protocol that readers of columns and tars speak,
in a process of its own, so that it takes none of a reader's Python.

    python -m benchmarks.slow_store FOLDER --latency 0.05      the folder is the bucket; prints its URL
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


class Store:
    """The files of a folder, as objects of a bucket of any name. requests: answered so far, by method."""

    def __init__(self, folder: Path, latency_s: float) -> None:
        self._folder, self._latency_s = folder, latency_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it."""
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                await asyncio.sleep(self._latency_s)
                method, target, _ = head.split(" ", 2)
                status, headers, body = self._answer(method, target, head)
                lines = [f"HTTP/1.1 {status}", f"Last-Modified: {_MODIFIED}", *headers, "", ""]
                writer.write("\r\n".join(lines).encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, method: str, target: str, head: str) -> tuple[str, list[str], bytes]:
        """Status, headers and body."""
        address = urlsplit(target)
        _, _, key = unquote(address.path).lstrip("/").partition("/")
        if not key:
            listed = self._listing(parse_qs(address.query).get("prefix", [""])[0]).encode()
            return "200 OK", [f"Content-Length: {len(listed)}", "Content-Type: application/xml"], listed
        try:
            data = (self._folder / key).read_bytes()
        except OSError:
            return "404 Not Found", ["Content-Length: 0"], b""
        etag = f'ETag: "{len(data)}"'
        if method == "GET" and (asked := re.search(r"(?im)^range: bytes=(\d+)-(\d+)", head)):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            part = data[first : last + 1]
            said = f"Content-Range: bytes {first}-{last}/{len(data)}"
            return "206 Partial Content", [f"Content-Length: {len(part)}", said, etag], part
        return "200 OK", [f"Content-Length: {len(data)}", etag], data

    def _listing(self, prefix: str) -> str:
        files = [file for file in sorted(self._folder.rglob("*")) if file.is_file()]
        names = [(str(file.relative_to(self._folder)), file.stat().st_size) for file in files]
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{size}"</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            for name, size in names
            if name.startswith(prefix)
        )
        return f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>'


@contextmanager
def started(folder: Path, latency_s: float) -> Iterator[str]:
    """A process of it; its URL."""
    command = [sys.executable, "-m", "benchmarks.slow_store", str(folder), "--latency", str(latency_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parent.parent)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


async def _run(folder: Path, latency_s: float) -> None:
    server = await asyncio.start_server(Store(folder, latency_s).serve, "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    arguments = parser.parse_args()
    asyncio.run(_run(arguments.folder, arguments.latency))


if __name__ == "__main__":
    main()
