"""Whether a server is away, or only one request fails: an outage is waited for, and charged to no sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from recap.engine.chat import NoAnswer

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Outage:
    """Shared by the threads that ask one server.

    Args:
        probe: asks the server what it can always answer; raises NoAnswer where it does not.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        self._probe = probe
        self._lock = threading.Lock()  # one thread probes, the others wait for what it finds
        self._closed = threading.Event()
        self._served = self._back = -1.0  # when the server last answered anybody, and last came back
        self._away = False  # it failed a probe, and has answered nobody since
        self._trouble = ""

    def notice(self, error: NoAnswer) -> None:
        """A try failed in a way that may be the server's trouble."""
        self._trouble = str(error)

    def served(self) -> None:
        """The server has answered."""
        self._served, self._trouble = time.monotonic(), ""
        if self._away:
            self._away, self._back = False, self._served

    @property
    def waiting(self) -> str:
        """What all requests wait for, "" while the server answers."""
        return self._trouble

    def outlast(self, since: float) -> bool:
        """After a request that failed: wait until the server answers again.

        Args:
            since: time.monotonic() when that request was first tried.

        Returns:
            Whether the server was away meanwhile: then the request may be tried again. Where it answers others, it was
            the request.
        """
        pause = FIRST_PAUSE_S
        with self._lock:
            while self._served < since and not self._closed.is_set():
                try:
                    self._probe()
                    self.served()
                except NoAnswer as error:
                    if not error.away:  # it answers, if only to refuse
                        self.served()
                        continue
                    self._away = True
                    self.notice(error)
                    self._closed.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
            return self._back >= since and not self._closed.is_set()

    def close(self) -> None:
        self._closed.set()
