"""Engines without a model, which answer at once, and a captioning operator around one: for tests of everything around
engines."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.engine import Caption, Request


class AtOnceEngine:
    """Answers every request in the next `poll`. seen: all requests so far."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self._waiting: list[Request] = []

    def answer(self, request: Request) -> Caption:
        raise NotImplementedError

    def want(self) -> int:
        return 64 - len(self._waiting)

    def put(self, request: Request) -> None:
        self.seen.append(request)
        self._waiting.append(request)

    def poll(self, timeout: float) -> list[Caption]:
        requests, self._waiting = self._waiting, []
        return [self.answer(request) for request in requests]

    def close(self) -> None: ...


class InstantEngine(AtOnceEngine):
    """Captions say how large the image file is. Each takes `delay_s` seconds, spent in `poll`."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__()
        self.delay_s = delay_s

    def answer(self, request: Request) -> Caption:
        time.sleep(self.delay_s)
        return Caption(request.id, f"A picture of {len(request.image or b'')} bytes.", 6, "stop")


class InstantOperator(CaptionOperator):
    """`captioner.model=instant:0.015` takes 15 ms an image."""

    Config: ClassVar[type] = CaptionConfig

    def identity(self) -> dict[str, Any]:
        return {"engine": "instant"}

    def preflight(self) -> list[str]:
        return []

    def setup(self, device: str) -> None:
        self._engine = InstantEngine(float(self.config.captioner.model.partition(":")[2] or 0))
