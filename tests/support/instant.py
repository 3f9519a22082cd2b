"""The captioning operator with an engine that makes captions up at once: for tests of everything around engines."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.engine import Caption, Request


class InstantEngine:
    """Captions say how large the image file is. `delay_s` a request, spent in `poll`."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.seen: list[Request] = []
        self._waiting: list[Request] = []

    def want(self) -> int:
        return 64 - len(self._waiting)

    def put(self, request: Request) -> None:
        self.seen.append(request)
        self._waiting.append(request)

    def poll(self, timeout: float) -> list[Caption]:
        requests, self._waiting = self._waiting, []
        time.sleep(self.delay_s * len(requests))
        return [Caption(r.id, f"A picture of {len(r.image or b'')} bytes.", 6, "stop") for r in requests]

    def close(self) -> None: ...


class InstantOperator(CaptionOperator):
    """`captioner.model=instant:0.015` takes 15 ms an image."""

    Config: ClassVar[type] = CaptionConfig

    def identity(self) -> dict[str, Any]:
        return {"engine": "instant"}

    def preflight(self) -> list[str]:
        return []

    def setup(self, device: str) -> None:
        self._engine = InstantEngine(float(self.config.captioner.model.partition(":")[2] or 0))
