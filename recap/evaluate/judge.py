"""A vision language model rates images against the texts that they were generated from. It does without a run, for
images that are not in tars, what `configs/generate/rating.yaml` does: with the same engine, prompt and parser.

Answers are kept on disk under a hash of the request (model, prompt, image, length), so that a second call, or one after
a kill, asks only what is missing. They are kept unparsed, so that another parser needs no new ones. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base.errors import UserError
from recap.engine import Caption, CaptionerConfig, Format, Request, check
from recap.engine.chat import UNREADABLE, ChatServer
from recap.engine.endpoint import CHANGED, EndpointEngine
from recap.evaluate.image_sets import ImageItem
from recap.evaluate.rating import RATE
from recap.generate.parsers import RatingParser, Unparsed

_TRIES = 3  # attempts where a retry may help: an answer that was cut off, a server under load
_POLL_S = 0.2
_REFUSALS = tuple(f"server: status {status}" for status in (401, 403, 404))


@dataclass(frozen=True)
class JudgeConfig:
    """How to judge.

    Args:
        endpoint: base URL, e.g. http://node7:8000/v1. model: the name that the server knows.
        key_env: environment variable with the key; it is neither logged nor stored.
        window: requests at a time. timeout_s: seconds for one answer. max_tokens: of an answer.
        patience_s: seconds for which a server that is away is waited for.
        cache: folder of answers.
    """

    endpoint: str
    model: str
    cache: Path
    key_env: str = "OPENAI_API_KEY"
    window: int = 8
    timeout_s: float = 120.0
    max_tokens: int = 64
    patience_s: float = 60.0

    def asking(self) -> CaptionerConfig:
        """The same as settings of an engine."""
        return CaptionerConfig(
            backend="openai", endpoint=[self.endpoint], endpoint_key_env=self.key_env,
            endpoint_timeout_s=self.timeout_s, served_model=self.model, window=self.window, max_tokens=self.max_tokens,
            prompts={"rating": Format(text=RATE)},  # type: ignore[dict-item]
        )  # fmt: skip


@dataclass
class Ratings:
    """The result of judging.

    ratings: of the images with one, in order. unparsed: (name, answer) of answers without a rating.
    unanswered: how many images have no answer, by reason. asked, cached: answers from the server, and from the disk.
    """

    ratings: list[int] = field(default_factory=list)
    unparsed: list[tuple[str, str]] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    cached: int = 0


class Answers:
    """Answers on disk. Each process appends to a file of its own, and reads all files when it starts. A line that a
    kill cut off is ignored."""

    def __init__(self, folder: Path) -> None:
        self._known: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["request"]] = entry["answer"]
                except (ValueError, KeyError, TypeError):
                    continue
        self._path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"

    def find(self, request: str) -> str | None:
        return self._known.get(request)

    def keep(self, request: str, answer: str) -> None:
        line = json.dumps({"request": request, "answer": answer}) + "\n"
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)
            self._known[request] = answer


class Judge:
    """Rates images.

    Raises:
        UserError: the endpoint is no URL.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        try:
            check(config.asking())
            ChatServer(config.endpoint, config.key_env, config.timeout_s)
        except ValueError as error:
            raise UserError(f"judge: {error}") from error
        self._answers = Answers(config.cache)
        self._parse = RatingParser()

    def rate(self, images: Iterable[ImageItem], done: Callable[[], object] = lambda: None) -> Ratings:
        """Rate images against their prompts, `window` at a time. done: called after each.

        Raises:
            UserError: the server refuses the key or the model, does not answer, or an image cannot be decoded.
        """
        asking = _RatingCall(self.config, self._answers, done)
        try:
            for item in images:
                asking.put(item)
            asking.finish()
        finally:
            asking.close()
        made = Ratings(asked=asking.asked, cached=asking.cached)
        for number in sorted(asking.outcomes):
            name, outcome = asking.outcomes[number]
            if outcome.reason:
                made.unanswered[outcome.reason] += 1
                continue
            try:
                made.ratings.append(self._parse(outcome.text)["rating"])
            except Unparsed:
                made.unparsed.append((name, outcome.text[:200]))
        return made


class _RatingCall:
    """One call of `Judge.rate`. outcomes: (name, answer) of each image, by its number."""

    def __init__(self, config: JudgeConfig, answers: Answers, done: Callable[[], object]) -> None:
        self.config, self._answers, self._done = config, answers, done
        self._engine = EndpointEngine(config.asking())
        self._in_flight: dict[int, tuple[ImageItem, str, int]] = {}
        self.outcomes: dict[int, tuple[str, Caption]] = {}
        self.asked = self.cached = 0

    def put(self, item: ImageItem) -> None:
        """Ask about an image, or take its answer from the disk. Waits while the window is full."""
        number, request = len(self.outcomes) + len(self._in_flight), self._digest(item)
        if (known := self._answers.find(request)) is not None:
            self.cached += 1
            self._end(number, item, Caption(number, known))
            return
        while self._engine.want() <= 0:
            self._take()
        self._send(number, item, request, 1)

    def finish(self) -> None:
        while self._in_flight:
            self._take()

    def close(self) -> None:
        self._engine.close()

    def _send(self, number: int, item: ImageItem, request: str, attempt: int) -> None:
        self._in_flight[number] = (item, request, attempt)
        self._engine.put(Request(number, item.data, {"caption": item.prompt or ""}, item.key))

    def _digest(self, item: ImageItem) -> str:
        about = {
            "model": self.config.model, "words": RATE, "max_tokens": self.config.max_tokens,
            "caption": item.prompt or "", "image": hashlib.sha256(item.data).hexdigest(),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _take(self) -> None:
        """Take answers from the engine. UserError where there was none for longer than the server may be down."""
        end = time.monotonic() + self.config.patience_s
        while not (captions := self._engine.poll(_POLL_S)):
            if not self._engine.waiting:
                end = time.monotonic() + self.config.patience_s
            elif time.monotonic() > end:
                raise self._down(self._engine.waiting)
        for caption in captions:
            item, request, attempt = self._in_flight.pop(caption.id)
            if caption.reason.startswith("image:"):  # without its image the rating would be meaningless
                raise UserError(f"judge: {item.name}: {caption.reason}: {caption.detail}")
            if caption.reason.startswith(CHANGED):
                raise UserError(
                    f"judge: {self.config.endpoint}: {caption.reason}. Ratings of one set are of one model."
                )
            if caption.reason.startswith(_REFUSALS):
                raise UserError(
                    f"judge: {self.config.endpoint} refuses ({caption.reason}: {caption.detail}). Is the model named "
                    f"{self.config.model!r} there, and the key in ${self.config.key_env}?"
                )
            if caption.reason == UNREADABLE and attempt < _TRIES:
                self._send(caption.id, item, request, attempt + 1)
                continue
            if not caption.reason:
                self.asked += 1
                self._answers.keep(request, caption.text)
            self._end(caption.id, item, caption)

    def _end(self, number: int, item: ImageItem, caption: Caption) -> None:
        self.outcomes[number] = (item.name, caption)
        self._done()

    def _down(self, why: str) -> UserError:
        return UserError(
            f"judge: {self.config.endpoint} gives no answers ({why}). Those so far are kept in {self.config.cache}; "
            "when the server is well, run this again."
        )
