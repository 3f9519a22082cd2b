"""A receiver of webhooks that refuses, loses answers and is slow."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "t0ken-that-stands-nowhere"


class Receiver:
    """Answers one request after another as `answers` says (200, 503, "lose", "hold"), then with 200."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []  # (idempotency key, body)
        self.answered: Counter[str] = Counter()  # 2xx by key
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers["Idempotency-Key"]
                outer.seen.append((key, body))
                answer = outer.answers.pop(0) if outer.answers else 200
                if answer == "hold":
                    outer.release.wait(60)
                if answer in ("lose", "hold"):
                    self.close_connection = True
                    return
                self.send_response(answer)
                if answer == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                outer.answered[key] += 200 <= answer < 300

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
