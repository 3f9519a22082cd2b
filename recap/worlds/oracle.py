"""A server that knows the truth: OpenAI's chat protocol, answered from a world's scenes. For tests of captioners,
judges, scores and rewards, with their real prompts.

    python -m recap.worlds.oracle TARS [--port 8000]

    writer: {backend: openai, endpoint: "http://localhost:8000/v1", served_model: "oracle/verdict?wrong=0.05&seed=1"}

Whose truth it is, it knows by the sha256 of the image in a request, or by a sample's key among the words of its text.
What it does, by the model's name:

    caption   tells all that is in the picture
    ask       answers the question in the text ("What colour ...", "How many ...", "Where ...", "background")
    rating    "Rating: 1" to "Rating: 5": the share of facts in the text that are right and told
    verdict   yes where all that the text says of the picture is right, no where something is wrong, unsure where it
              says nothing
    compare   first, second or tie: which of "First caption:" and "Second caption:" has more facts right than wrong
    pick      first, second or third: which of "First caption:", "Second caption:" and "Third caption:" has most facts
              more right than wrong, of equal ones the earlier
    fuse      all that is in the picture, and as its name what follows "Sentence 1:", "Alt-text:" or "Text:"; without
              image and key, what follows "Sentence 2:" or "What can be seen:" is believed

and of texts in the shapes' words, which it knows by labels at the beginning of a line:

    facts     "[fact][yes]" for each fact of "Caption:"
    match     the number of "Fact:" in a numbered list, or 0
    supports  yes where "Text:" says all of "Statement:", no where it does not
    objects   the things that "Caption:" names, a line each
    contains  yes where the descriptions name "the following object", no where they do not
    questions "[question][answer]" for each fact of "Reference:"
    answer    what "Caption:" answers to "Question:"
    grade     {"verdict", "score"}: "Answer:" against "Right answer:"
    graph     {"objects", "attributes", "relations"} of "Caption:"

and what goes wrong, each with a share of the requests that the seed and the request decide: `wrong` answers, `unparsed`
ones, `errors` (a 503, once: the second try is answered), `refused` (a 400, always).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hpc.base.command import command
from hpc.base.errors import Exit, Parser
from recap.randomness import draw
from recap.worlds.answers import OF_TEXTS, TASKS, mistaken, told
from recap.worlds.truths import Truth, Truths

log = logging.getLogger(__name__)

_RATES = ("wrong", "unparsed", "errors", "refused")


class Oracle:
    """Answers requests. Thread-safe."""

    def __init__(self, truths: Truths) -> None:
        self.truths = truths
        self.asked = 0
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a chat completion request."""
        image, text = _content(body["messages"])
        try:
            task, rates, seed = _behaviour(str(body["model"]))
        except ValueError as error:
            return 404, {"error": {"message": str(error)}}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        hit = {name: draw(seed, name, digest) / 2**64 < rate for name, rate in rates.items()}
        with self._lock:
            self.asked += 1
            first = digest not in self._failed
            if hit["errors"]:
                self._failed.add(digest)
        if hit["refused"]:
            return 400, {"error": {"message": "refused, as asked for"}}
        if hit["errors"] and first:
            return 503, {"error": {"message": "failed once, as asked for"}}
        if task in OF_TEXTS:
            right = OF_TEXTS[task](text)
        else:
            truth = self.truths.find(image, text) or (told(text) if task == "fuse" else None)
            if truth is None:
                return 400, {"error": {"message": "neither the image nor a key in the text is of this world"}}
            right = TASKS[task](truth, text)
            if hit["wrong"] and mistaken(task, right) is None:
                right = TASKS[task](self._other(truth, seed), text)
        if hit["wrong"]:
            right = mistaken(task, right) or right
        said = "Hm." if hit["unparsed"] else right
        return 200, _completion(said, int(body.get("max_tokens") or 1 << 30), str(body["model"]))

    def _other(self, truth: Truth, seed: int) -> Truth:
        """Another picture, of which other things are true."""
        keys = list(self.truths.by_key)
        start = draw(seed, "other", truth.key)
        others = (self.truths.by_key[keys[(start + step) % len(keys)]] for step in range(len(keys)))
        return next((found for found in others if found.caption != truth.caption), truth)


def _content(messages: list[dict[str, Any]]) -> tuple[bytes | None, str]:
    """The image and the text of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return None, content
    texts = [part["text"] for part in content if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return base64.b64decode(urls[0].partition(";base64,")[2]) if urls else None, "\n".join(texts)


def _behaviour(model: str) -> tuple[str, dict[str, float], int]:
    """Task, rates and seed that a model's name says."""
    name, _, query = model.partition("?")
    task = name.removeprefix("oracle/")
    given = dict(urllib.parse.parse_qsl(query))
    if task not in {*TASKS, *OF_TEXTS} or set(given) - {*_RATES, "seed"}:
        raise ValueError(
            f"no model {model!r}: oracle/ and one of {', '.join([*TASKS, *OF_TEXTS])}, with ?{'=&'.join(_RATES)}=&seed="
        )
    try:
        rates, seed = {rate: float(given.get(rate, 0)) for rate in _RATES}, int(given.get("seed", 0))
    except ValueError as error:
        raise ValueError(f"no model {model!r}: {error}") from error
    if odd := next((rate for rate, share in rates.items() if not 0 <= share <= 1), None):
        raise ValueError(f"no model {model!r}: {odd} is a share from 0 to 1")
    return task, rates, seed


def _completion(text: str, most: int, model: str) -> dict[str, Any]:
    words = text.split()
    cut = len(words) > most
    message = {"role": "assistant", "content": " ".join(words[:most]) if cut else text}
    choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
    usage = {"completion_tokens": min(len(words) + 1, most)}
    return {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


# --- the server -------------------------------------------------------------------------------------


def _handler(oracle: Oracle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.endswith("/chat/completions"):
                self._send(404, {"error": {"message": f"no path {self.path}"}})
                return
            try:
                self._send(*oracle.answer(json.loads(body)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                self._send(400, {"error": {"message": f"no chat completion request: {error!r}"}})

        def do_GET(self) -> None:  # a model's name says what it does: there is no list of all
            self._send(404, {"error": {"message": f"no path {self.path}"}})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            log.debug(format, *arguments)

    return Handler


@contextmanager
def serving(truths: Truths, port: int = 0) -> Iterator[tuple[str, Oracle]]:
    """The oracle at work: its base URL, and itself."""
    oracle = Oracle(truths)
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(oracle)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", oracle
        finally:
            server.shutdown()


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path, help="a tar, or a folder of them")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tars = sorted(args.tars.glob("*.tar")) if args.tars.is_dir() else [args.tars]
    with serving(Truths(tars), args.port) as (url, oracle):
        log.info("%s knows %s pictures", url, f"{len(oracle.truths.by_key):,}")
        threading.Event().wait()
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
