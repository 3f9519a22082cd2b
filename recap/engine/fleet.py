"""Several servers of one model that share the requests. A dead one is left out, and tried again after a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recap.engine.chat import TRIES, ChatServer, NoAnswer

OUT_S = 15.0  # that a server which did not answer gets no request, where others do


@dataclass
class _Place:
    """A server, how many requests it holds, and until when it is left out (time.monotonic())."""

    server: ChatServer
    held: int = 0
    out: float = 0.0


class Fleet:
    """See `recap.engine.chat.ChatServer` for what one is asked."""

    def __init__(self, servers: Sequence[ChatServer]) -> None:
        self._places = [_Place(server) for server in servers]
        self._lock = threading.Lock()

    def replace(self, server: ChatServer) -> None:
        """The one server stands elsewhere now."""
        self._places[0].server = server

    def ask(self, body: bytes, noticed: Callable[[NoAnswer], object], tries: int = TRIES) -> bytes:
        """The answer of the server with the fewest requests; of another one where it does not answer.

        Raises:
            NoAnswer: one refused, or none answered: the last one in all its tries.
        """
        asked: list[_Place] = []
        while True:
            place = self._take(asked)
            last = len(asked) + 1 == len(self._places)
            asked.append(place)
            try:
                answer = place.server.ask(body, tries if last else 1, noticed)
            except NoAnswer as error:
                if error.away:
                    place.out = time.monotonic() + OUT_S
                if not error.away or last:
                    raise
            else:
                place.out = 0.0
                return answer
            finally:
                with self._lock:
                    place.held -= 1

    def _take(self, asked: list[_Place]) -> _Place:
        now = time.monotonic()
        with self._lock:
            left = [place for place in self._places if not any(place is one for one in asked)]
            place = min(left, key=lambda p: (p.out > now, p.held))
            if 0.0 < place.out <= now:
                place.out = now + OUT_S  # one request tries it; the others see what becomes of that
            place.held += 1
            return place
