"""Tars from web servers of every kind, on a real loopback server that counts what it is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from hpc.base.errors import ShardError, UserError
from hpc.operator import Shard
from recap.data import remote
from recap.data.index import scan_shard
from recap.data.inputs import DataConfig, list_shards
from recap.data.remote import fetch, open_shard
from recap.data.tars import Sample, read_samples
from tests.data.oddities import pack

NOISE = random.Random(0).randbytes
FILES = {
    "small.tar": pack(("0.png", b"image"), ("0.txt", b"text")),
    "big.tar": pack(*((f"{n}.bin", NOISE(100_000)) for n in range(8)), ("8.png", b"image")),
    "empty.tar": b"",
}


class Server(ThreadingHTTPServer):
    """The first part of a path says how it behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.refusals = 0
        Thread(target=self.serve_forever, daemon=True).start()

    def url(self, kind: str, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}/{name}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.send_error(405)

    def do_GET(self) -> None:
        kind, name = self.path.partition("?")[0].strip("/").split("/")
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        if kind == "forbidden" or (kind == "flaky" and self.server.refusals > 0):
            self.server.refusals -= 1
            self.send_error(403 if kind == "forbidden" else 503)
            return
        data = FILES[name]
        if kind == "chunked":
            self._chunked(data)
        elif span and kind in ("ranges", "flaky"):
            self._range(data, span)
        else:
            self._whole(data, broken=kind == "broken", silent=kind == "silent")

    def _chunked(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(data), 65536):
            piece = data[at : at + 65536]
            self._write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self._write(b"0\r\n\r\n")

    def _range(self, data: bytes, span: str) -> None:
        first, _, last = span.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last) + 1]
        self.send_response(206 if piece else 416)
        where = f"{first}-{int(first) + len(piece) - 1}" if piece else "*"
        self.send_header("Content-Range", f"bytes {where}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self._write(piece)

    def _whole(self, data: bytes, broken: bool, silent: bool) -> None:
        """silent: neither length nor chunks, as HTTP/1.0 has it; broken: half of it."""
        self.send_response(200)
        if not silent:
            self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self._write(data[: len(data) // 2] if broken else data)
        self.close_connection = True

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
            self.server.sent += len(data)
        except OSError:
            pass  # the client has seen enough


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr("hpc.base.remote_files.LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "TRIES", 3)
    monkeypatch.setattr(remote, "RANGE", 200_000)
    shared.asked.clear()
    shared.sent = 0
    return shared


def planned(url: str) -> Shard:
    [shard] = list_shards(DataConfig(shards=[url]))
    return shard


@pytest.mark.parametrize("kind", ["ranges", "chunked", "whole", "silent", "flaky"])
@pytest.mark.parametrize("name", ["small.tar", "big.tar"])
def test_every_server_gives_the_tar(server: Server, kind: str, name: str) -> None:
    server.refusals = 2 if kind == "flaky" else 0
    with open_shard(planned(server.url(kind, name))) as file:
        samples = list(read_samples(file))
    assert all(isinstance(s, Sample) for s in samples)
    assert samples[-1].members["png"] == b"image"  # type: ignore[union-attr]
    assert server.refusals <= 0
    if kind in ("chunked", "whole", "silent"):
        assert len(server.asked) == 2  # what it can do, and the file


def test_an_empty_file_is_not_an_unknown_length(server: Server) -> None:
    for kind in ("ranges", "chunked", "whole"):
        with open_shard(planned(server.url(kind, "empty.tar"))) as file:
            [damage] = read_samples(file)
        assert damage.reason == "tar: zero bytes"  # type: ignore[union-attr]


def test_a_connection_that_is_lost_fails_the_shard(server: Server) -> None:
    with open_shard(planned(server.url("broken", "big.tar"))) as file, pytest.raises(ShardError) as error:
        list(read_samples(file))
    assert error.value.reason == "input: connection lost"
    assert len(server.asked) == 2


def test_what_is_hopeless_is_asked_once(server: Server) -> None:
    with pytest.raises(ShardError, match="input: forbidden"):
        open_shard(planned(server.url("forbidden", "small.tar")))
    assert len(server.asked) == 1


def test_a_training_needs_ranges(server: Server) -> None:
    shard = planned(server.url("ranges", "big.tar"))
    blocks = scan_shard(shard)
    assert (blocks.first, blocks.count) == (["0"], [9])
    assert fetch(shard.uri, 512, 1000) == FILES["big.tar"][512:1000]
    for kind in ("whole", "chunked"):
        with pytest.raises(ShardError, match="index: no ranges"):
            scan_shard(planned(server.url(kind, "big.tar")))
    with pytest.raises(ShardError, match="input: no ranges"):
        fetch(server.url("whole", "big.tar"), 512, 1000)


@pytest.mark.parametrize(
    "query", ["X-Amz-Expires=9&X-Amz-Signature=abc", "sv=2024&sig=abc", "token=abc", "Expires=1&Signature=abc"]
)
def test_presigned_urls_are_refused_when_planned(query: str) -> None:
    with pytest.raises(UserError) as error:
        planned(f"https://nowhere.invalid/0.tar?{query}")
    assert "presigned" in str(error.value)
    assert "abc" not in str(error.value)


def test_passwords_in_web_urls_are_refused(tmp_path) -> None:
    (tmp_path / "list.txt").write_text("https://me:abc@nowhere.invalid/0.tar\n")
    with pytest.raises(UserError, match="a user or password") as error:
        list_shards(DataConfig(shards=[f"@{tmp_path}/list.txt"]))
    assert "abc" not in str(error.value)


def test_urls_that_their_query_tells_apart(server: Server) -> None:
    urls = [f"http://h/get.tar?file={n}.tar" for n in range(2)] + ["http://h/other?file=0.tar", "http://h/a.tar?v=1"]
    found = list_shards(DataConfig(shards=urls))
    assert [s.id for s in found] == ["a", "get.tar%3Ffile=0", "get.tar%3Ffile=1", "other"]
    assert sorted(s.uri for s in found) == sorted(urls)
