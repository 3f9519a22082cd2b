"""A chat server for tests that is really started, killed and stopped: what it does is told by files in a folder.

    python -m tests.support.scripted_server --port 8000 --control DIR

DIR/unhealthy (a number: so many refusals of /health, or `always`), DIR/failing (answers 500 while it is there),
DIR/hanging (answers nobody while it is there). It writes its number, and that of a process in a session of its own
which ignores SIGTERM, as files in DIR/pids.

With --surface NAME --seed N --sizes 5,4 --at I,J it answers as many requests a second as that surface says at that
point, counted from 1 (tests.support.surfaces), and runs out of memory before it is healthy where that says so.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from tests.support.surfaces import surface

_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


def says(image: bytes) -> str:
    """What it captions an image with."""
    return f"A picture {hashlib.sha256(image).hexdigest()[:12]}."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--surface", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", default="")
    parser.add_argument("--at", default="")
    args, _ = parser.parse_known_args()
    device = _Device(_busy_s(args))
    control: Path = args.control
    refused = 0
    (control / "pids").mkdir(parents=True, exist_ok=True)
    stubborn = subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=True, stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()  # it ignores the signal from here on

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal refused
            wanted = (control / "unhealthy").read_text() if (control / "unhealthy").exists() else "0"
            well = self.path == "/health" and wanted != "always" and refused >= int(wanted)
            refused += not well
            self._say(200 if well else 503, b"")

        def do_POST(self) -> None:
            with (control / "asked").open("a") as asked:
                asked.write("x")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            while (control / "hanging").exists():
                time.sleep(0.02)
            device.work()
            if (control / "failing").exists():
                self._say(500, b"switched off")
                return
            picture = body["messages"][-1]["content"][0]["image_url"]["url"]
            text = says(base64.b64decode(picture.partition(";base64,")[2]))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._say(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 9}}).encode())

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    (control / "pids" / str(stubborn.pid)).touch()
    (control / "pids" / f"server-{args.port}").write_text(str(os.getpid()))
    print("scripted server:", *sys.argv[1:], flush=True)  # noqa: T201 - its log
    server.serve_forever()


class _Device:
    """Takes requests one after another, each for the same time, as a GPU does however busy its machine is."""

    def __init__(self, busy_s: float) -> None:
        self._busy_s, self._free, self._lock = busy_s, 0.0, Lock()

    def work(self) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + self._busy_s
            ready = self._free
        time.sleep(max(0.0, ready - time.monotonic()))


def _busy_s(args: argparse.Namespace) -> float:
    """Seconds that a request takes; ends the process where memory does not suffice."""
    if not args.surface:
        return 0.0
    sizes, at = (tuple(map(int, text.split(","))) for text in (args.sizes, args.at))
    rate = surface(args.surface, args.seed, sizes)[tuple(number - 1 for number in at)]
    if rate is None:
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", flush=True)  # noqa: T201
        sys.exit(1)
    return 1.0 / rate


if __name__ == "__main__":
    main()
