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
    fuse      all that is in the picture, and as its name what follows "Sentence 1:", "Alt-text:" or "Text:"; without
              image and key, what follows "Sentence 2:" or "What can be seen:" is believed

and what goes wrong, each with a share of the requests that the seed and the request decide: `wrong` answers, `unparsed`
ones, `errors` (a 503, once: the second try is answered), `refused` (a 400, always).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import logging
import re
import tarfile
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hpc.base.errors import Parser, UserError
from recap.randomness import draw
from recap.worlds import emoji, flag_captions, shape_claims, shape_scenes, shapes

log = logging.getLogger(__name__)

_WORD = re.compile(r"[\w./#@-]+")
_RATES = ("wrong", "unparsed", "errors", "refused")


@dataclass(frozen=True)
class Judged:
    """Facts of a picture that a text has right, has wrong, and leaves out."""

    right: int
    wrong: int
    unsaid: int


@dataclass(frozen=True)
class Truth:
    """What is known of one picture.

    judge: counts a text's facts. attributes: what may be asked for, by the word that asks.
    """

    key: str
    caption: str
    judge: Callable[[str], Judged]
    attributes: Mapping[str, str]


def _of_shapes(key: str, about: dict[str, Any]) -> Truth:
    scene = shapes.scene_from_json(about)
    first = scene.groups[0]

    def judge(text: str) -> Judged:
        found = shape_claims.judge(text, scene)
        return Judged(len(found.verdicts) - len(found.wrong), len(found.wrong), len(found.unsaid))

    attributes = {
        "colour": f"The {first.kind} is {first.colour}.",
        "how many": f"There is {shapes.caption(shape_scenes.Scene(scene.background, (first,)), 'short')}.",
        "where": f"The {first.kind} is in the {first.place}.",
        "background": f"The background is {scene.background}.",
    }
    return Truth(key, shapes.caption(scene), judge, attributes)


def _of_emoji(key: str, about: dict[str, Any]) -> Truth:
    scene = emoji.scene_from_json(about)

    def judge(text: str) -> Judged:
        if emoji.parse(text) is None:
            return Judged(0, 0, len(scene.sprites))
        found = [right for fact, right in emoji.judge(text, scene).items() if fact != "all"]
        return Judged(sum(found), len(found) - sum(found), 0)

    first = scene.sprites[0]
    attributes = {
        "where": f"The {first.name} is at the {first.place}.",
        "background": f"The background is {scene.background}.",
    }
    return Truth(key, emoji.describe(scene), judge, attributes)


def _of_flags(key: str, about: dict[str, Any]) -> Truth:
    colours = set(about["colours"])

    def judge(text: str) -> Judged:
        told = set(flag_captions.colours_in(text))
        return Judged(len(told & colours), len(told - colours), len(colours - told))

    said = ", ".join(sorted(colours))
    attributes = {"colour": f"Its colours are {said}.", "layout": f"Its layout is {about['layout']}."}
    return Truth(key, f"This {about['layout']} flag is {said}.", judge, attributes)


_WORLDS: Mapping[str, Callable[[str, dict[str, Any]], Truth]] = {
    "groups": _of_shapes,
    "sprites": _of_emoji,
    "colours": _of_flags,
}
"""By a field that the truth of this world alone has."""


class Truths:
    """The truth of all samples of some tars, by key and by the image's digest."""

    def __init__(self, tars: Iterable[str | Path]) -> None:
        self.by_key: dict[str, Truth] = {}
        self.by_image: dict[str, Truth] = {}
        for tar in tars:
            for key, members in _samples(tar):
                self._add(key, members)
        if not self.by_key:
            raise UserError("oracle: no sample of the tars has a truth: a json member as recap.worlds writes it.")

    def _add(self, key: str, members: Mapping[str, bytes]) -> None:
        about = json.loads(members.get("json", b"{}"))
        world = next((make for field, make in _WORLDS.items() if field in about), None)
        if world is None:
            return
        self.by_key[key] = truth = world(key, about)
        for extension, data in members.items():
            if extension not in ("json", "txt"):
                self.by_image[hashlib.sha256(data).hexdigest()] = truth

    def find(self, image: bytes | None, text: str) -> Truth | None:
        """By the image, else by the first word of the text that is a key, or a child's (`k#3`)."""
        if image is not None:
            return self.by_image.get(hashlib.sha256(image).hexdigest())
        words = (word.strip(".") for word in _WORD.findall(text))
        names = (name for word in words for name in (word, word.rpartition("#")[0]))
        return next((self.by_key[name] for name in names if name in self.by_key), None)


def _samples(tar: str | Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and members of a tar as recap.worlds writes them: whole, a sample's members one after another."""
    with tarfile.open(tar) as file:
        for key, group in itertools.groupby(file, lambda member: member.name.partition(".")[0]):
            yield key, {m.name.partition(".")[2]: found.read() for m in group if (found := file.extractfile(m))}


# --- answers ----------------------------------------------------------------------------------------


def _ask(truth: Truth, text: str) -> str:
    asked = [answer for word, answer in truth.attributes.items() if word in text.lower()]
    return " ".join(asked) or truth.caption


def _rating(truth: Truth, text: str) -> str:
    found = truth.judge(text)
    share = found.right / max(found.right + found.wrong + found.unsaid, 1)
    return f"Rating: {1 + round(4 * share)}"


def _verdict(truth: Truth, text: str) -> str:
    found = truth.judge(text)
    return "no" if found.wrong else "yes" if found.right else "unsure"


def _compare(truth: Truth, text: str) -> str:
    """The last word is the verdict, as judges are asked for it."""
    merits = []
    for place in ("First", "Second"):
        said = re.search(rf"^{place} caption:[ \t]*(.*)$", text, re.M)
        found = truth.judge(said[1] if said else "")
        merits.append(found.right - found.wrong)
    verdict = "tie" if merits[0] == merits[1] else "first" if merits[0] > merits[1] else "second"
    return f"One has {merits[0]} facts more right than wrong, the other {merits[1]}.\n{verdict}"


def _fuse(truth: Truth, text: str) -> str:
    name = re.search(r"^(?:Sentence 1|Alt-text|Text):[ \t]*(.+)$", text, re.M)
    return f"{truth.caption} It is called {name[1].strip()}." if name else truth.caption


def _told(text: str) -> Truth | None:
    """What a text for `fuse` says itself of a picture that it does not name: its second sentence is believed."""
    seen = re.search(r"^(?:Sentence 2|What can be seen):[ \t]*(.+)$", text, re.M)
    return Truth("", seen[1].strip(), lambda text: Judged(0, 0, 0), {}) if seen else None


_TASKS: Mapping[str, Callable[[Truth, str], str]] = {
    "caption": lambda truth, text: truth.caption,
    "ask": _ask,
    "rating": _rating,
    "verdict": _verdict,
    "compare": _compare,
    "fuse": _fuse,
}
_OPPOSITE = {"yes": "no", "no": "yes", "unsure": "yes", "first": "second", "second": "first", "tie": "first"}


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
            self._failed.add(digest)
        if hit["refused"]:
            return 400, {"error": {"message": "refused, as asked for"}}
        if hit["errors"] and first:
            return 503, {"error": {"message": "failed once, as asked for"}}
        truth = self.truths.find(image, text) or (_told(text) if task == "fuse" else None)
        if truth is None:
            return 400, {"error": {"message": "neither the image nor a key in the text is of this world"}}
        said = "Hm." if hit["unparsed"] else self._said(task, truth, text, hit["wrong"], seed)
        return 200, _completion(said, int(body.get("max_tokens") or 1 << 30))

    def _said(self, task: str, truth: Truth, text: str, wrong: bool, seed: int) -> str:
        if not wrong:
            return _TASKS[task](truth, text)
        if task in ("verdict", "compare"):
            return _OPPOSITE[_TASKS[task](truth, text).split()[-1]]
        if task == "rating":
            return f"Rating: {6 - int(_rating(truth, text)[-1])}"
        keys = list(self.truths.by_key)  # what it says is true of another picture
        start = draw(seed, "other", truth.key)
        others = (self.truths.by_key[keys[(start + step) % len(keys)]] for step in range(len(keys)))
        other = next((found for found in others if found.caption != truth.caption), truth)
        return _TASKS[task](other, text)


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
    if task not in _TASKS or set(given) - {*_RATES, "seed"}:
        raise ValueError(
            f"no model {model!r}: oracle/ and one of {', '.join(_TASKS)}, with ?{'=&'.join(_RATES)}=&seed="
        )
    return task, {rate: float(given.get(rate, 0)) for rate in _RATES}, int(given.get("seed", 0))


def _completion(text: str, most: int) -> dict[str, Any]:
    words = text.split()
    cut = len(words) > most
    message = {"role": "assistant", "content": " ".join(words[:most]) if cut else text}
    choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": min(len(words) + 1, most)}}


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


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path, help="a tar, or a folder of them")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tars = sorted(arguments.tars.glob("*.tar")) if arguments.tars.is_dir() else [arguments.tars]
    with serving(Truths(tars), arguments.port) as (url, oracle):
        log.info("%s knows %s pictures", url, f"{len(oracle.truths.by_key):,}")
        threading.Event().wait()


if __name__ == "__main__":
    main()
