"""A real S3 server on the loopback, which counts what it sends."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class ObjectStore:
    """moto's server behind a relay that counts bytes from the store to its clients."""

    def __init__(self) -> None:
        server = pytest.importorskip("moto.server")
        self._server = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()
        self._sent = 0
        self.requests: list[str] = []
        """Methods and paths, as they came."""
        self.together = 0
        """Requests are held back until as many have been under way at the same time, or 20 s have passed."""
        self.under_way = self.most = 0
        """Requests that are, and at most were, held back at the same time."""
        self._held = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def sent(self) -> int:
        return self._sent

    def upload(self, folder: Path) -> None:
        """Put a folder's files into the bucket `corpus`, not through the relay."""
        import fsspec

        store = fsspec.filesystem("s3", endpoint_url=f"http://127.0.0.1:{self._port}", skip_instance_cache=True)
        store.makedirs("corpus", exist_ok=True)  # of a test before this one in the same process
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                store.pipe_file(f"corpus/{file.relative_to(folder)}", file.read_bytes())

    def close(self) -> None:
        self._listener.close()
        self._server.stop()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            store = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._relay, args=(client, store, False), daemon=True).start()
            threading.Thread(target=self._relay, args=(store, client, True), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self._sent += len(data) * counted
                if not counted and (request := re.match(rb"(GET|HEAD) (\S+) HTTP/", data)):
                    self.requests.append(f"{request[1].decode()} {request[2].decode()}")
                if self.together and not counted:
                    self._hold()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _hold(self) -> None:
        with self._held:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self._held.notify_all()
            self._held.wait_for(lambda: self.most >= self.together, timeout=20)
            self.under_way -= 1


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in [n for n in os.environ if n.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        monkeypatch.delenv(name)
    store = ObjectStore()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    import fsspec
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": store.url})
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    store.close()
