"""A small HTTP proxy between a client and a real loopback S3 server, which hurts some of the replies and counts what
it did.

Faults are armed by method: `proxy.arm("GET", "503", 3)` makes the next three GETs of objects answer 503. Kinds:
"503", "truncate" (half the body, then the connection is closed), "hang" (no answer for `hang_s`), "lost" (the
request is carried out, the reply is dropped).
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultProxy:
    """Runs in a thread of its own. `hits` counts the faults that were dealt, `bytes_out` what was sent to clients."""

    def __init__(self, upstream: tuple[str, int], hang_s: float = 5.0) -> None:
        self.upstream, self.hang_s = upstream, hang_s
        self.hits: Counter[str] = Counter()
        self.bytes_out = 0
        self._armed: dict[str, deque[str]] = {}
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                proxy._serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def arm(self, method: str, kind: str, times: int = 1) -> None:
        with self._lock:
            self._armed.setdefault(method, deque()).extend([kind] * times)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next_fault(self, handler: BaseHTTPRequestHandler) -> str:
        path, _, query = handler.path.partition("?")
        is_object = path.strip("/").count("/") >= 1 and "list-type" not in query
        with self._lock:
            queue = self._armed.get(handler.command)
            return queue.popleft() if queue and is_object else ""

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = self._next_fault(handler)
        if fault:
            self.hits[f"{handler.command} {fault}"] += 1
        if fault == "503":
            self._answer(handler, 503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>")
            return
        if fault == "hang":
            time.sleep(self.hang_s)
            handler.close_connection = True
            return
        upstream = http.client.HTTPConnection(*self.upstream, timeout=30)
        upstream.request(handler.command, handler.path, body or None, dict(handler.headers))
        reply = upstream.getresponse()
        data = reply.read()
        headers = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        upstream.close()
        if fault == "lost":
            handler.close_connection = True
            handler.connection.close()
            return
        self._answer(handler, reply.status, headers, data, cut=fault == "truncate")

    def _answer(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, cut: bool = False
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "server", "date"):
                handler.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if handler.command == "HEAD" else str(len(data))
        handler.send_header("Content-Length", length)
        handler.end_headers()
        sent = data[: len(data) // 2] if cut else data
        if handler.command != "HEAD":
            handler.wfile.write(sent)
            self.bytes_out += len(sent)
        if cut:
            handler.close_connection = True
