"""Engines whose model runs elsewhere, behind coroutines: one thread with an event loop, a bounded window of requests.

Never a list at a time: a finished caption makes room for the next request, so that the server's batch stays full.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from abc import ABC, abstractmethod

from hpc.base.underfilled import Underfilled
from recap.engine.holding import check_put
from recap.engine.interface import Caption, Request


class AsynchronousEngine(ABC):
    """Runs `caption` for up to `window` requests at a time. See `recap.engine.interface.Engine`."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._in_flight: dict[int, tuple[int, float]] = {}  # by id: requests in flight with it, when it was put
        self._fill = Underfilled()
        self._done: queue.SimpleQueue[Caption | Exception] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @abstractmethod
    async def caption(self, request: Request) -> Caption:
        """The caption of a request; exceptions are failures of the engine, which `poll` raises."""

    def want(self) -> int:
        return self.window - len(self._in_flight)

    def put(self, request: Request) -> None:
        check_put(request, self._in_flight, self.want())
        self._in_flight[request.id] = len(self._in_flight) + 1, time.monotonic()
        self._loop.call_soon_threadsafe(self._start, request)

    def poll(self, timeout: float) -> list[Caption]:
        done: list[Caption] = []
        wait = timeout if self._in_flight else 0.0
        room, begun = self.want() > 0, time.monotonic()
        try:
            while True:
                found = self._done.get(timeout=wait) if wait else self._done.get_nowait()
                if isinstance(found, Exception):
                    raise found
                done.append(found)
                wait = 0.0
        except queue.Empty:
            pass
        now = time.monotonic()
        for caption in done:
            together, put = self._in_flight.pop(caption.id)
            self._fill.took(together, now - put)
        if room:
            self._fill.short(len(done), now - begun)
        return done

    @property
    def starved_s(self) -> float:
        return self._fill.lost_s(self.window)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)
        self._loop.close()

    @abstractmethod
    async def aclose(self) -> None:
        """Release what `caption` uses."""

    async def _finish(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.aclose()

    def _start(self, request: Request) -> None:
        task = self._loop.create_task(self._run(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, request: Request) -> None:
        try:
            self._done.put(await self.caption(request))
        except Exception as error:  # noqa: BLE001 - whatever it is, poll raises it
            self._done.put(error)
