"""The judge against a real HTTP server on the loopback, whose answers are a function of what it is asked."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.base.errors import UserError
from recap.evaluate.image_sets import ImageItem
from recap.evaluate.judge import Judge, JudgeConfig
from recap.evaluate.rating import RATE
from tests.evaluate.paint import paint

KEY = "sk-very-secret"


def rating_of(image: bytes, text: str) -> int:
    return hashlib.sha256(image + text.encode()).digest()[0] % 5 + 1


@dataclass
class Server:
    """Counts what it is asked; `plan` holds answers before the good one, by caption: (status, body, headers)."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)  # caption -> when it was asked about
    keys: set[str] = field(default_factory=set)
    plan: dict[str, list[tuple[int, str, dict[str, str]]]] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)  # caption -> answer
    delay_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        picture, text = body["messages"][0]["content"]
        caption = text["text"].partition("[Image Caption] ")[2].partition("  Rate")[0]
        with self.lock:
            self.bodies.append(body)
            self.times.setdefault(caption, []).append(time.monotonic())
            planned = self.plan.get(caption, [])
            if planned:
                return planned.pop(0)
        time.sleep(self.delay_s)
        image = base64.b64decode(picture["image_url"]["url"].partition(";base64,")[2])
        rating = rating_of(image, text["text"])
        said = f"Rating: {rating}"
        choice = {"message": {"content": self.says.get(caption, said)}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}), {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.add(self.headers.get("Authorization", ""))
            status, text, headers = state.answer(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Http(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # clients are killed here
            pass

    http = Http(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("recap.engine.chat.FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield state
    http.shutdown()
    http.server_close()


def images(count: int) -> list[ImageItem]:
    prompts = [f"a {('red', 'green', 'blue')[i % 3]} square, number {i}" for i in range(count)]
    return [ImageItem(f"{i}", f"image {i}", paint(p, 3, i), p) for i, p in enumerate(prompts)]


def expected(made: list[ImageItem]) -> list[int]:
    return [rating_of(i.data, RATE.replace("{caption}", str(i.prompt))) for i in made]


def config(server: Server, folder: Path, **changes: Any) -> JudgeConfig:
    return replace(JudgeConfig(server.url, "judge-1", folder / "cache", window=4), **changes)


def test_it_asks_what_the_rating_job_asks() -> None:
    """One prompt, in two places: the config of jobs, and here for images without a run."""
    shipped = yaml.safe_load((Path(__file__).parents[2] / "configs/generate/rating.yaml").read_text())
    assert shipped["formats"]["rating"]["text"] == RATE


def test_ratings_are_the_servers_and_asked_for_once(server: Server, tmp_path: Path) -> None:
    made, settings = images(30), config(server, tmp_path)
    first = Judge(settings).rate(made)
    assert first.ratings == expected(made)
    assert len(set(first.ratings)) == 5 and (first.asked, first.cached, len(server.bodies)) == (30, 0, 30)
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.0, 64)

    again = Judge(settings).rate(made)
    assert again.ratings == first.ratings and (again.asked, again.cached) == (0, 30) and len(server.bodies) == 30
    Judge(replace(settings, model="judge-2")).rate(made[:3])  # another model, caption or image is another request
    Judge(settings).rate([replace(made[0], prompt="another"), replace(made[0], data=made[1].data)])
    assert len(server.bodies) == 35
    assert server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in f.read_text() for f in (tmp_path / "cache").iterdir())


def test_bad_answers_are_retried_or_counted(server: Server, tmp_path: Path) -> None:
    made = images(8)
    busy, down, garbage, wrong, dead, chatty, high, _ = (str(i.prompt) for i in made)
    server.plan = {
        busy: [(429, "slow down", {"Retry-After": "0.4"})],
        down: [(500, "cuda error", {})] * 3,
        garbage: [(200, "<html>", {}), (200, '{"choices": [', {})],
        wrong: [(400, f"image too large for {KEY}", {})],
        dead: [(503, "loading", {})] * 99,
    }
    server.says = {chatty: "A lovely picture.", high: "Rating: 7"}
    found = Judge(config(server, tmp_path, window=1)).rate(made)
    assert found.ratings == expected([made[0], made[1], made[2], made[7]])
    assert found.unparsed == [("image 5", "A lovely picture."), ("image 6", "Rating: 7")]
    assert found.unanswered == {"server: status 400": 1, "server: status 503": 1}
    assert len(server.bodies) == 2 + 4 + 3 + 1 + 5 + 1 + 1 + 1 + 1  # one more asks whether the server is away
    first, second = server.times[busy]  # several are made ready side by side: it need not be the first of all
    assert second - first >= 0.4, "Retry-After is honoured"

    server.plan.clear()
    again = Judge(config(server, tmp_path)).rate(made)  # only what had no answer is asked again
    assert (again.asked, again.cached, len(server.bodies)) == (2, 6, 21)
    assert len(again.ratings) == 6 and again.unparsed == found.unparsed and not again.unanswered


_PROCESS = """
import sys
from pathlib import Path
from recap.evaluate.judge import Judge, JudgeConfig
from recap.evaluate.rating import RATE
from tests.evaluate.test_judge import images
Judge(JudgeConfig(sys.argv[1], "judge-1", Path(sys.argv[2]), window=4)).rate(images(40))
"""


def test_a_killed_run_goes_on(server: Server, tmp_path: Path) -> None:
    made, settings = images(40), config(server, tmp_path)
    server.delay_s = 0.2
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", _PROCESS, server.url, str(settings.cache)], cwd=root)
    while len(server.bodies) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    before, (file,) = len(server.bodies), settings.cache.iterdir()
    with file.open("ab") as torn:
        torn.write(b'{"request": "abc')  # as a kill in the middle of a write leaves it
    kept = len(file.read_text().splitlines()) - 1
    assert before < 40 and before - kept <= 4  # at most what was in flight is lost
    server.delay_s = 0.0
    found = Judge(settings).rate(made)
    assert found.ratings == expected(made)
    assert (found.cached, found.asked, len(server.bodies)) == (kept, 40 - kept, before + 40 - kept)


@pytest.mark.parametrize("status, why", [(401, r"refuses .*\$OPENAI_API_KEY"), (404, "refuses .*named 'judge-1'")])
def test_a_refusal_stops_at_once(server: Server, tmp_path: Path, status: int, why: str) -> None:
    made = images(40)
    server.plan = {str(i.prompt): [(status, f"no: {KEY}", {})] for i in made}
    with pytest.raises(UserError, match=why) as error:
        Judge(config(server, tmp_path)).rate(made)
    assert KEY not in str(error.value) and len(server.bodies) <= 12


def test_what_cannot_be_judged_is_named(server: Server, tmp_path: Path) -> None:
    nobody = config(server, tmp_path, endpoint="http://127.0.0.1:9/v1", patience_s=0.5)
    for count in (2, 40):
        with pytest.raises(UserError, match=r"127.0.0.1:9/v1 gives no answers .*refused.*kept in"):
            Judge(nobody).rate(images(count))
    with pytest.raises(UserError, match="is no http URL"):
        Judge(config(server, tmp_path, endpoint="node7:8000"))
    with pytest.raises(UserError, match="image 0: image: "):
        Judge(config(server, tmp_path)).rate([replace(images(1)[0], data=b"junk")])
