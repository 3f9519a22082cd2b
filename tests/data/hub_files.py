"""A Hub for tests that serves the files of one data set at its commits, as huggingface_hub asks for them, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

NAME = "me/set"


class HubFiles:
    """commits: files by commit, the last is the head. requests: method, path and range of each."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HubFiles:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, files: dict[str, bytes]) -> str:
        """The new head's digest."""
        name = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = files
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        name = list(self.commits)[-1] if revision == "main" else revision
        return (name, self.commits[name]) if name in self.commits else None

    def tree(self, files: dict[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if below and not path.startswith(f"{below}/"):
                continue
            inside = path[len(below) + 1 :] if below else path
            if "/" in inside and not recursive:
                folder = "/".join(filter(None, (below, inside.partition("/")[0])))
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40}
            else:
                oid = hashlib.sha1(data).hexdigest()
                found[path] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
        return list(found.values())


class _Handler(BaseHTTPRequestHandler):
    hub: HubFiles
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, hub = unquote(parts.path), self.hub
        hub.requests.append(f"GET {path} {self.headers.get('Range', '')}".rstrip())
        if path.startswith(f"/api/datasets/{NAME}/revision/") or path == f"/api/datasets/{NAME}":
            found = hub.at(path.rpartition("/revision/")[2] if "/revision/" in path else "main")
            if found:
                return self._json({"id": NAME, "sha": found[0]})
            return self._json({"error": "Revision not found"}, 404, "RevisionNotFound")
        if path.startswith(f"/api/datasets/{NAME}/tree/"):
            revision, _, below = path.removeprefix(f"/api/datasets/{NAME}/tree/").partition("/")
            found = hub.at(revision)
            tree = hub.tree(found[1], below, "recursive=true" in parts.query.lower()) if found else []
            return self._json(tree) if tree else self._json({"error": "not found"}, 404, "EntryNotFound")
        if path.startswith(f"/datasets/{NAME}/resolve/"):
            revision, _, file = path.removeprefix(f"/datasets/{NAME}/resolve/").partition("/")
            found = hub.at(revision)
            if found and file in found[1]:
                return self._bytes(found[1][file])
        return self._json({"error": "not found"}, 404, "RepoNotFound")

    def _json(self, answer: Any, status: int = 200, code: str = "") -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), ("X-Error-Code", code)):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _bytes(self, data: bytes) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        start, end = (
            (int(asked.split("-")[0]), int(asked.split("-")[1] or len(data) - 1)) if asked else (0, len(data) - 1)
        )
        part = data[start : end + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubFiles]:
    """A Hub that this process, and those that it starts, take for the real one."""
    from huggingface_hub import HfFileSystem

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with HubFiles() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        template = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        HfFileSystem.clear_instance_cache()
        yield found
        HfFileSystem.clear_instance_cache()
