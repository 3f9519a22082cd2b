"""A Hub for tests: data sets, commits and Xet storage as huggingface_hub and hf_xet speak to them, over HTTP.

    with FakeHub() as hub:
        ...  HF_ENDPOINT=hub.address HF_TOKEN=hf_of_a_test

Files are kept by oid: sha256, or git's digest where they are texts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXTS = (".md", ".json")  # files that are git's own, as .gitattributes has it
Fault = Callable[["FakeHub", str], tuple[int, dict[str, str]] | None]


@dataclass
class Repo:
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()

    def commit(self, title: str, paths: list[str], author: str = "me") -> None:
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits.append(
            {
                "id": self.head,
                "title": title,
                "message": "",
                "date": date,
                "authors": [{"user": author}],
                "paths": paths,
            }
        )


class FakeHub:
    """before, after: what a request gets in the place of its answer, asked before and after it is carried out."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.xorbs: list[int] = []  # bytes of each that came
        self.before: Fault = lambda hub, request: None
        self.after: Fault = lambda hub, request: None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if request == "POST /api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.repos
            self.repos.setdefault(name, Repo(commits=[{"id": "0", "title": "initial commit", "paths": []}]))
            return 409 if known else 200, {"url": f"{self.address}/datasets/{name}"}, {}
        if request == "POST /api/validate-yaml":
            wrong = [{"message": '"license" is required here'}] if "license:" not in json.loads(body)["content"] else []
            return 400 if wrong else 200, {"errors": wrong, "warnings": []}, {}
        if "/xorbs/" in request and request.startswith("POST"):
            self.xorbs.append(len(body))
            return 200, {"was_inserted": True}, {}
        if request.startswith("POST") and request.endswith("shards"):
            return 200, {"type": "result", "result": 1}, {}
        found = re.match(r"(\w+) /api/datasets/([^/]+/[^/?]+)(?:/([\w-]+))?", request)
        if found is None or found[2] not in self.repos:
            return 404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"} if found else {}
        return getattr(self, f"_{(found[3] or 'revision').replace('-', '_')}")(self.repos[found[2]], found[2], body)

    def _revision(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        return 200, {"id": name, "sha": repo.head}, {}

    def _tree(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        return 200, [{"type": "file", "path": path, **facts} for path, facts in repo.files.items()], {}

    def _commits(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        return 200, [c for c in repo.commits[::-1] if "date" in c], {}

    def _preupload(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = [
            {
                "path": asked["path"],
                "uploadMode": "regular" if asked["path"].endswith(TEXTS) else "lfs",
                "shouldIgnore": False,
                "oid": repo.files.get(asked["path"], {}).get("oid"),
            }
            for asked in json.loads(body)["files"]
        ]
        return 200, {"files": files}, {}

    def _xet_write_token(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        facts = {"casUrl": self.address, "exp": int(time.time()) + 3600, "accessToken": "xet-token"}
        names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Token-Expiration": "exp", "X-Xet-Access-Token": "accessToken"}
        return 200, facts, {header: str(facts[key]) for header, key in names.items()}

    def _commit(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        head, *lines = [json.loads(line) for line in body.splitlines()]
        if head["value"].get("parentCommit", repo.head) != repo.head:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                repo.files[value["path"]] = {"oid": oid, "size": len(data)}
            elif line["key"] == "lfsFile":
                lfs = {"oid": value["oid"], "size": value["size"], "pointerSize": 130}
                repo.files[value["path"]] = {"oid": value["oid"][:40], "size": value["size"], "lfs": lfs}
            else:
                del repo.files[value["path"]]
        repo.commit(head["value"]["summary"], [line["value"]["path"] for line in lines])
        url = f"{self.address}/datasets/{name}/commit/{repo.head}"
        return 200, {"commitUrl": url, "commitOid": repo.head, "success": True}, {}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        hub, request = self.hub, f"{self.command} {self.path}"
        body = self._body()
        with hub.lock:
            hub.requests.append(request)
            instead = hub.before(hub, request)
            status, answer, headers = (
                (instead[0], {"error": "fault"}, instead[1]) if instead else hub.answer(request, body)
            )
            instead = None if instead else hub.after(hub, request)
            if instead:
                status, answer, headers = instead[0], {"error": "fault"}, instead[1]
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_HEAD = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, format: str, *args: object) -> None: ...
