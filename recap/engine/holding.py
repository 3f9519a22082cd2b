"""What engines share that hold a limited number of requests until all of their texts are there."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, Protocol

from recap.engine.captions import Pending
from recap.engine.interface import Caption, Request
from recap.engine.settings import CaptionerConfig

if TYPE_CHECKING:
    from recap.engine.prompts import Prompt  # it brings torch along


class Writes(Protocol):
    """One text that is being written: the request that it is for, and what it was asked with."""

    pending: Pending
    prompt: Prompt


def check_put(request: Request, in_flight: Container[int], room: int) -> None:
    """ValueError where an engine is given a request that it has no room for, or one of a number that it has."""
    if request.id in in_flight:
        raise ValueError(f"Request id {request.id} is already in flight; ids must be unique.")
    if room <= 0:
        raise ValueError("The engine is full: put() was called while want() is 0. Poll first.")


class Holding:
    """`want`, and the two ends of a request. most: requests that are held at a time."""

    config: CaptionerConfig
    checkpoint: Any

    def __init__(self, most: int) -> None:
        self._most = most
        self._pending: dict[int, Pending] = {}

    def want(self) -> int:
        return self._most - len(self._pending)

    def hold(self, request: Request) -> Pending:
        """Take a request on."""
        check_put(request, self._pending, self.want())
        names = self.checkpoint.book.names(request.key)
        pending = self._pending[request.id] = Pending(request, names)
        return pending

    def finish(self, job: Writes, ids: list[int]) -> Caption | None:
        """Add what was written; the request's caption once all of its texts are there, which lets go of it."""
        prompt = job.prompt
        caption = job.pending.write(prompt.format, ids, prompt.max_tokens, self.checkpoint, self.config.trim)
        if caption:
            del self._pending[caption.id]
        return caption
