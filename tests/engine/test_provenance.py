"""Who wrote the captions is named everywhere: the server and its words, no folder that wrote nothing, no secret."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpc import launch
from hpc.base.errors import Exit, UserError
from hpc.run.published import Published
from recap import export
from recap.engine import CaptionerConfig
from recap.engine.provenance import check_served, in_words, made_by, writers

FLAGS = Path(__file__).resolve().parents[2] / "recap/demo/flags"


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listed = [{"id": "llava", "object": "model", "owned_by": "vllm", "max_model_len": 4096, "permission": []}]
        self._answer({"data": listed} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = {"message": {"content": "a flag"}, "finish_reason": "stop"}
        self._answer({"choices": [said], "usage": {"completion_tokens": 3}})

    def _answer(self, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}/v1"
    made.shutdown()
    made.server_close()


def test_the_server_says_what_it_is(server: str) -> None:
    config = CaptionerConfig(backend="openai", endpoint=[f"{server}/"], served_model="llava", model="x")
    made = made_by(config)
    assert made["server"] == {"owned_by": "vllm", "max_model_len": 4096}
    assert in_words(made) == f"llava at {server} (max_model_len 4096, owned_by vllm)"
    assert check_served(config) == ""
    config.served_model = "another"
    with pytest.raises(UserError, match=r"serves llava\. Write one of these"):
        check_served(config)
    config.endpoint = ["http://127.0.0.1:9/v1"]
    assert "does not answer from here" in check_served(config)
    assert made_by(config)["server"] == {}
    old = {"backend": "openai", "endpoint": server, "served_model": "llava", "model": "/models/mine"}
    assert writers(old, [{}]) == [f"llava at {server}"] and writers({"model": "/m"}, []) == ["/m"]


def test_plan_marker_and_card_name_what_wrote(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config still names a local model, which wrote nothing."""
    typed = [
        "configs/caption/demo.yaml", f"runs={tmp_path}", "name=served", f"data.shards=[{FLAGS}/00007.tar]",
        "captioner.backend=openai", f"captioner.endpoint={server}",
    ]  # fmt: skip
    assert launch.main([*typed, "captioner.served_model=other", "--dry-run"]) == Exit.USAGE
    assert "serves llava" in " ".join(capsys.readouterr().err.split())
    assert launch.main([*typed, "captioner.served_model=llava"]) == Exit.COMPLETE
    words = f"llava at {server} (max_model_len 4096, owned_by vllm)"
    said = capsys.readouterr().out
    assert words in " ".join(said.split()) and "recap/demo/captioner" not in said
    (shard,) = Published(tmp_path / "served")
    assert in_words(shard.marker["made_by"]) == words
    assert export.main([str(tmp_path / "served"), str(tmp_path / "out")]) == Exit.COMPLETE
    card = (tmp_path / "out/README.md").read_text()
    assert f"- written by: {words}" in card.replace("\\", "") and "recap/demo/captioner" not in card
