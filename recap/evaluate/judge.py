"""A vision language model rates images against their captions from 1 to 5, with the prompt of the paper (section 4).

Any OpenAI-compatible server judges. What it answered is kept on disk under a hash of the whole request (model, prompt,
caption, image, parameters): a second run asks nothing again, and a killed one goes on. Answers are kept as they were
given, so that another parser needs no new ones. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.data.images import BadImage, EncodedImage
from recap.engine.chat import ChatServer, NoAnswer, read_choice, user_message
from recap.evaluate.image_sets import ImageItem
from recap.generate.rating import parse_rating

RATE = (
    "[Image Caption] {caption}  Rate whether the caption is of high-quality and fluent and correctly matches the given "
    "image. The rating should be 1-5, where 1 is incorrect and not fluent at all, and 5 is correct and very fluent. "
    "Try to just give a numerical rating."
)
AS_TEXT = "  Your response should be in the format: Rating: (int)"
AS_JSON = '  Your response should be in the format: {"rating": (int)}'
"""The paper's words are RATE + AS_TEXT; where its line breaks stood is not known."""

_SCHEMA = {
    "type": "object",
    "properties": {"rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]}},
    "required": ["rating"],
    "additionalProperties": False,
}
_UNREADABLE_TRIES = 3
_LOST_IN_A_ROW = 10  # images without an answer after which the server counts as down


@dataclass(frozen=True)
class JudgeConfig:
    """How to judge.

    Args:
        endpoint: base URL, e.g. http://node7:8000/v1. model: the name that the server knows.
        key_env: environment variable with the key; it is neither logged nor stored.
        structured: have the server hold to a JSON schema (response_format) instead of the paper's "Rating: (int)".
        window: requests at a time. timeout_s: seconds for one answer. max_tokens: of an answer.
        cache: folder of answers.
    """

    endpoint: str
    model: str
    cache: Path
    key_env: str = "OPENAI_API_KEY"
    structured: bool = False
    window: int = 8
    timeout_s: float = 120.0
    max_tokens: int = 64


@dataclass
class Ratings:
    """What came of judging.

    ratings: in the order of the images. unparsed: (name, answer) of answers without a rating.
    unanswered: images without an answer, by reason. asked, cached: answers got from the server and from the disk.
    """

    ratings: list[int] = field(default_factory=list)
    unparsed: list[tuple[str, str]] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    cached: int = 0


class Answers:
    """Answers on disk: each process appends to a file of its own, and reads all of them when it starts.

    A line that a kill cut off is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
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
        with self._lock, open(self._path, "a", encoding="utf-8") as file:
            file.write(line)
            self._known[request] = answer


class Judge:
    """See the module's text.

    Raises:
        UserError: the endpoint is no URL.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._server = ChatServer(config.endpoint, config.key_env, config.timeout_s)
        self._answers = Answers(config.cache)

    def rate(self, images: Iterable[ImageItem], done: Callable[[], object] = lambda: None) -> Ratings:
        """Rate images against their prompts, `window` at a time. done: called after each.

        Raises:
            UserError: the server refuses the key or the model, does not answer at all, an image cannot be decoded.
        """
        made, lost_in_a_row, why = Ratings(), 0, ""
        pool = ThreadPoolExecutor(self.config.window)
        waiting: deque[tuple[ImageItem, Future[_Outcome]]] = deque()

        def finish() -> None:
            nonlocal lost_in_a_row, why
            item, future = waiting.popleft()
            outcome = future.result()
            _count(made, item, outcome)
            lost_in_a_row, why = (lost_in_a_row + 1, outcome.lost) if outcome.lost else (0, why)
            if lost_in_a_row >= max(_LOST_IN_A_ROW, 2 * self.config.window):
                raise self._down(why)
            done()

        try:
            for item in images:
                waiting.append((item, pool.submit(self._answer, item)))
                if len(waiting) >= 2 * self.config.window:
                    finish()
            while waiting:
                finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if made.unanswered and not made.asked and not made.cached:
            raise self._down(why)
        return made

    def _answer(self, item: ImageItem) -> _Outcome:
        try:
            image = EncodedImage(item.data).portable()  # a damaged one would only be an odd rating
        except BadImage as error:
            raise UserError(f"judge: {item.name}: {error}") from error
        body = json.dumps(self._body(image, item.prompt), sort_keys=True).encode()
        request = hashlib.sha256(body).hexdigest()
        if (known := self._answers.find(request)) is not None:
            return _Outcome(known, cached=True)
        try:
            answer = self._ask(body)
        except NoAnswer as error:
            if error.status in (401, 403, 404):
                raise UserError(
                    f"judge: {self.config.endpoint} refuses ({error}). Is the model named {self.config.model!r} there, "
                    f"and the key in ${self.config.key_env}?"
                ) from error
            return _Outcome(lost=str(error), reason=error.reason)
        self._answers.keep(request, answer)
        return _Outcome(answer)

    def _ask(self, body: bytes) -> str:
        """A readable answer; servers and proxies under load also send half ones."""
        for attempt in range(_UNREADABLE_TRIES):
            answer = self._server.ask(body)
            try:
                return read_choice(answer).text
            except NoAnswer:
                if attempt == _UNREADABLE_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _body(self, image: bytes, prompt: str | None) -> dict[str, Any]:
        config = self.config
        text = (RATE + (AS_JSON if config.structured else AS_TEXT)).replace("{caption}", prompt or "")
        body: dict[str, Any] = {
            "model": config.model,
            "max_tokens": config.max_tokens,
            "temperature": 0.0,
            "messages": [user_message(image, text)],
        }
        if config.structured:
            schema = {"name": "rating", "strict": True, "schema": _SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _down(self, why: str) -> UserError:
        return UserError(
            f"judge: {self.config.endpoint} gives no answers ({why}). Those so far are kept in {self.config.cache}; "
            "when the server is well, run this again."
        )


@dataclass(frozen=True)
class _Outcome:
    """An answer, or why there is none (lost, with particulars; reason, to count)."""

    answer: str = ""
    cached: bool = False
    lost: str = ""
    reason: str = ""


def _count(made: Ratings, item: ImageItem, outcome: _Outcome) -> None:
    if outcome.lost:
        made.unanswered[outcome.reason] += 1
        return
    made.cached += outcome.cached
    made.asked += not outcome.cached
    rating = parse_rating(outcome.answer)
    if rating is None:
        made.unparsed.append((item.name, outcome.answer[:200]))
    else:
        made.ratings.append(rating)
