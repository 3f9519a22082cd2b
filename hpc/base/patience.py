"""Trying again for a while. A service or a file system that is away may come back, so a worker must not crash at once;
nor may it wait for ever.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from hpc.base.errors import UserError

log = logging.getLogger(__name__)

MOST_S = 60.0  # that `patiently` tries, at most
Result = TypeVar("Result")


def pause_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds before try number `attempt` + 1: about twice as long each time, and spread out, so that hundreds of
    clients of a service that comes back do not ask it all at once.
    """
    return random.uniform(0.5, 1.0) * min(longest_s, first_s * 2**attempt)


def retry(
    call: Callable[[], Result], tries: int, is_final: Callable[[Exception], bool], first_s: float, longest_s: float,
    asked_s: Callable[[Exception], float] = lambda error: 0.0,
    waiting: Callable[[Exception, int, float], object] = lambda error, attempt, pause: None,
) -> Result:  # fmt: skip
    """What `call` returns, of at most `tries` tries in growing pauses (see `pause_s`).

    Args:
        is_final: whether another try would end in the same error.
        asked_s: seconds that the error itself asks to wait; a pause is that long, or `longest_s`.
        waiting: called before each pause with the error, the number of the try that met it, and the seconds.

    Raises the error of the last try, or the first that is final.
    """
    for attempt in range(1, tries):
        try:
            return call()
        except Exception as error:  # each service's client has exceptions of its own
            if is_final(error):
                raise
            pause = min(max(pause_s(attempt, first_s, longest_s), asked_s(error)), longest_s)
            waiting(error, attempt, pause)
        time.sleep(pause)
    return call()


def patiently(do: Callable[[], Result], lease_s: float) -> Result:
    """What `do` returns. After an OSError it is tried again, in pauses that double, for `lease_s` seconds (at most a
    minute).

    Raises UserError after that: a further life of the slot would meet the same error.
    """
    patience = min(lease_s, MOST_S)
    end, pause = time.monotonic() + patience, patience / 32
    while True:
        try:
            return do()
        except OSError as error:
            if time.monotonic() + pause > end:
                raise UserError(
                    f"slot: it cannot work in the run directory: {error}. Is it mounted here, whole and writable? "
                    "Launching the run again makes folders that are missing."
                ) from error
            log.warning("%s: trying again in %.1f s", error, pause)
            time.sleep(pause)
            pause *= 2
