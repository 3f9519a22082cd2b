"""The OpenAI-compatible backend against a real HTTP server on the loopback interface."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from benchmarks.random_captioner import photo
from hpc import config as configs
from hpc.base import heartbeat
from hpc.base.errors import Exit, UserError
from hpc.map import launch as map_launch
from hpc.map import status as map_status
from hpc.run.directory import Run
from recap.engine import Caption, CaptionerConfig, PromptFormat, Request, load_engine
from recap.engine.chat import ChatServer, Choice, NoAnswer, read_choice
from recap.engine.endpoint import EndpointEngine
from recap.engine.provenance import made_by
from tests.engine.conftest import drive
from tests.support.jobs import ENVIRONMENT, command, wait_for


def says(image: bytes, prompt: str) -> str:
    """What the server captions an image with: it depends on every byte of the request."""
    return f"A picture {hashlib.sha256(image + prompt.encode()).hexdigest()[:12]}. It is nice"


@dataclass
class Server:
    """A chat server: records what it is asked, fails as told."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    failures: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # prompt -> answers before the good one
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    away: str = ""  # "hung" | "failing": to all
    odd: dict[str, str] = field(default_factory=dict)  # prompt -> "endless" | "slow" answer

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        if path != "/v1/chat/completions":
            return 404, "no such path"
        picture, text = body["messages"][0]["content"]
        with self.lock:
            self.bodies.append(body)
            self.now += 1
            self.most = max(self.most, self.now)
            planned = self.failures.get(text["text"], [])
            failure = planned.pop(0) if planned else None
        time.sleep(0.005)
        with self.lock:
            self.now -= 1
        if failure:
            return failure
        image = base64.b64decode(picture["image_url"]["url"].partition(";base64,")[2])
        message = {"role": "assistant", "content": " " + says(image, text["text"]) + "\n"}
        choice = {"index": 0, "message": message, "finish_reason": "length" if "cut" in text["text"] else "stop"}
        return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 9}})


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.append(self.headers.get("Authorization", ""))
            if state.away:
                if state.away == "hung":
                    while state.away:
                        time.sleep(0.01)
                    return
                self.send_response(503)
                self.end_headers()
                return
            if kind := state.odd.get(body["messages"][0]["content"][1]["text"]):
                self.send_response(200)
                self.end_headers()
                try:
                    for _ in range(1000):
                        self.wfile.write(bytes(1 << 20) if kind == "endless" else b" ")
                        time.sleep(0.0 if kind == "endless" else 0.1)
                except OSError:
                    self.close_connection = True
                return
            status, text = state.answer(self.path, body)
            if status == 0:  # hang up in the middle
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                self.connection.close()
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.request_queue_size = 128
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recap.engine.chat.FIRST_WAIT_S", 0.001)


def config(server: Server, **changes: Any) -> CaptionerConfig:
    base = CaptionerConfig(backend="openai", endpoint=[server.url], served_model="llava", window=8, max_tokens=40)
    return replace(base, **changes)


def test_each_image_gets_its_own_caption(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", "secret")
    settings = config(server, endpoint_key_env="CAPTION_KEY")
    engine = load_engine(settings)
    requests = [Request(i, photo(i, format="PNG" if i % 2 else "JPEG"), key=str(i)) for i in range(60)]
    found = drive(engine, [*requests, Request(60, b"junk")])
    engine.close()
    for request in requests:
        caption = found[request.id]
        assert (caption.text, caption.tokens, caption.finish) == (
            says(request.image or b"", settings.prompt),
            8,
            "stop",
        )
    assert found[60].reason == "image: not an image"
    assert 2 < server.most <= 8, "the window is used, and kept"
    assert set(server.keys) == {"Bearer secret"}
    first = server.bodies[0]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("llava", 40, 0.0)
    kinds = Counter(body["messages"][0]["content"][0]["image_url"]["url"].split(";")[0] for body in server.bodies)
    assert kinds == {"data:image/jpeg": 30, "data:image/png": 30}


def test_failures_are_retried_or_named(server: Server) -> None:
    forms = {name: PromptFormat(name) for name in ("busy", "broken", "wrong", "down", "hangs up")}
    server.failures = {
        "busy": [(429, "slow down"), (503, "loading")],
        "broken": [(200, '{"choices": []}')],
        "wrong": [(400, "image too large")] * 9,
        "down": [(500, "cuda error")] * 9,
        "hangs up": [(0, "")],
    }
    expected = {
        "busy": ("", False),
        "broken": ("server: unreadable answer", True),
        "wrong": ("server: status 400", False),
        "down": ("server: status 500", True),
        "hangs up": ("", False),
    }
    for name, outcome in expected.items():
        engine = load_engine(config(server, prompts={name: forms[name]}))
        found = drive(engine, [Request(0, photo(0))])[0]
        engine.close()
        assert (found.reason, found.transient) == outcome, name
    asked = Counter(body["messages"][0]["content"][1]["text"] for body in server.bodies)
    assert asked.pop("Which colour?") == 1, "after the one that had failed in all tries"
    assert asked == {"busy": 3, "broken": 1, "wrong": 1, "down": 5, "hangs up": 2}


def test_a_server_that_is_away_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, hung and failing for all: no sample is charged, what is waited for is said, and then it goes on."""
    monkeypatch.setattr("recap.engine.outage.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("recap.engine.outage.LONGEST_PAUSE_S", 0.01)
    for away, said in (("refused", "refused"), ("hung", "took too long|timed out"), ("failing", "status 503")):
        server.away = away
        endpoint = "http://127.0.0.1:9/v1" if away == "refused" else server.url
        engine = load_engine(config(server, endpoint=[endpoint], endpoint_timeout_s=0.2))
        assert isinstance(engine, EndpointEngine)
        for number in range(3):
            engine.put(Request(number, photo(number)))
        end = time.monotonic() + 60
        while not (re.search(said, engine.waiting) and engine._outage._away):  # a probe has failed, too
            assert engine.poll(0.05) == [] and time.monotonic() < end, engine.waiting
        engine._fleet.replace(ChatServer(server.url, "", 100.0))  # a slow machine may answer late
        server.away = ""
        found: dict[int, Caption] = {}
        while len(found) < 3:
            found |= {caption.id: caption for caption in engine.poll(0.1)}
        assert all(caption.finish and not caption.reason for caption in found.values()) and not engine.waiting
        engine.close()


@pytest.mark.parametrize("kind, reason", [("endless", "server: answer too long"), ("slow", "server: no answer")])
def test_an_answer_has_a_size_and_a_time(server: Server, kind: str, reason: str) -> None:
    server.odd = {"Odd": kind}
    engine = load_engine(config(server, prompts={"": PromptFormat("Odd")}, endpoint_timeout_s=0.3))
    assert isinstance(engine, EndpointEngine)
    chat = ChatServer(server.url, "", 0.3 if kind == "slow" else 60.0)
    body = json.dumps(engine._body(Request(0, b""), photo(0), "")).encode()
    began = time.monotonic()
    with pytest.raises(NoAnswer) as error:
        chat.ask(body, tries=1)
    engine.close()
    assert error.value.reason == reason and error.value.away == (kind == "slow")
    assert kind == "endless" or time.monotonic() - began < 10, "a byte at a time does not hold a request"


UNREADABLE = (
    "[" * 100_000, '{"choices": []}', "<html>", '{"choices": [{"message": {"content": null}}]}', "\xff\xfe",
    '{"choices": [{"message": {"content": "x"}, "finish_reason": 7}]}',
)  # fmt: skip


@pytest.mark.parametrize("answer", UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_answer_that_is_none(answer: str) -> None:
    with pytest.raises(NoAnswer, match="unreadable answer"):
        read_choice(answer.encode("latin-1"))


@pytest.mark.parametrize("tokens", ["9", "1e999", "-4", '"many"', str(2**70), "null"])
def test_what_a_column_cannot_hold_does_not_reach_it(tokens: str) -> None:
    """Half a surrogate pair, a count that is none: an engine would die of it, with all the rows that it holds."""
    said = '{"content": " a \\ud800 flag "}, "finish_reason": null}'
    answer = f'{{"choices": [{{"message": {said}], "usage": {{"completion_tokens": {tokens}}}}}'
    assert read_choice(answer.encode()) == Choice("a ? flag", "", 9 if tokens == "9" else 0)


def test_formats_seeds_and_trimming(server: Server) -> None:
    forms = {"alt": PromptFormat("Improve {alt}", alt_tokens=3), "cut": PromptFormat("cut", max_tokens=7)}
    settings = config(server, prompts=forms, decoding="sample", temperature=0.7, top_k=40, seed=5, trim=True)
    requests = [Request(i, photo(i), texts={"alt": "one two three four"}, key=f"k{i}") for i in range(30)]
    runs = []
    for _ in range(2):
        server.bodies.clear()
        engine = load_engine(settings)
        runs.append(drive(engine, requests))
        engine.close()
    assert runs[0] == runs[1] and {caption.format for caption in runs[0].values()} == {"alt", "cut"}
    texts = {body["messages"][0]["content"][1]["text"]: body for body in server.bodies}
    assert set(texts) == {"Improve one two three", "cut"} and texts["cut"]["max_tokens"] == 7
    assert texts["cut"]["top_k"] == 40 and len({body["seed"] for body in server.bodies}) == 30
    assert all(c.text.endswith(".") == (c.format == "cut") for c in runs[0].values())


def test_an_engine_that_fails_says_so_in_poll(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: EndpointEngine, *_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(EndpointEngine, "_caption", broken)
    engine = load_engine(config(server))
    engine.put(Request(0, photo(0)))
    with pytest.raises(RuntimeError, match="bug"):
        engine.poll(5)
    engine.close()


def test_waiting_that_looks_like_a_hang_is_refused_at_launch(tmp_path: Path) -> None:
    tree = {
        "name": "x", "operator": "tests.support.instant.InstantOperator", "data": {"shards": ["x.tar"]},
        "runs": str(tmp_path),
        "captioner": {"backend": "openai", "endpoint": "http://n:1/v1", "served_model": "m", "endpoint_timeout_s": 120},
        "cluster": {"kind": "local"},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"captioner.endpoint_timeout_s.* 600 s.*map.hang_s=600"):
        map_launch.prepare(configs.check(tree, ""))


def test_a_bad_url_is_named() -> None:
    with pytest.raises(UserError, match="no http URL"):
        load_engine(CaptionerConfig(backend="openai", endpoint=["node7:8000"], served_model="x"))
    for odd, said in (
        ("http://node7:80000/v1", "Port"),
        ("http://[::1/v1", "IPv6"),
        ("http://me:pw7@node7/v1", "holds a password"),
        ("http://node7/v1?api-key=pw7", "which is not sent"),
    ):
        with pytest.raises(UserError, match=said) as error:
            made_by(CaptionerConfig(backend="openai", endpoint=[odd], served_model="x"))
        assert "pw7" not in str(error.value)


@pytest.mark.slow
def test_a_job_outlasts_a_server_that_is_away(server: Server, tmp_path: Path) -> None:
    """Status says what it waits for; after map.away_s the slot is requeued, and its next life does the work."""
    image = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 9)).save(image, "PNG")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for key in "abc":
            for name, data in ((f"{key}.png", image.getvalue()), (f"{key}.txt", key.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    tree = {
        "name": "r", "runs": str(tmp_path), "operator": "recap.caption.operator.CaptionOperator",
        "captioner": {"backend": "openai", "endpoint": server.url, "served_model": "llava"},
        "data": {"shards": [str(tmp_path / "00000.tar")]}, "cluster": {"kind": "local", "device": "cpu"},
        "map": {"away_s": 3.0, "lease_s": 2.0, "min_free_gb": 0.0},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    server.away = "failing"
    launched = subprocess.Popen([sys.executable, "-m", "hpc.launch", str(tmp_path / "c.yaml")], env=ENVIRONMENT)
    run = Run(tmp_path / "r")
    try:
        wait_for(lambda: run.is_run() and run.submissions() and map_status.read_status(run)["waiting"])
        said = command("hpc.status", str(run.path))
        lives = wait_for(lambda: [f for f in heartbeat.read_all(run.slots) if f["life"] == 1])
        server.away = ""
        assert launched.wait(240) == Exit.COMPLETE
    finally:
        launched.kill()
    assert "waiting: 1 engines: " in said.stdout and "503" in said.stdout and "map.away_s" in said.stdout
    first = heartbeat.read(run.slots, lives[0]["instance"].removesuffix("1") + "0")
    assert first["code"] == Exit.REQUEUE and re.match("away for 3 s: .*503", first["why"])
    facts = map_status.read_status(run)
    assert facts["samples"]["ok"] == 3 and facts["waiting"] == {} and facts["engine_deaths"] == {}
    assert not facts["attempts"], "neither shard nor sample was charged"
