"""Files at URLs: the file system of one, and requests that are tried again while a store does not answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hpc.base.patience import pause_s

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 20.0
Result = TypeVar("Result")


def file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system for a URL or a local path, and the path in it."""
    import fsspec  # it brings asyncio along, 0.15 s: commands on local files do without

    system, path = fsspec.core.url_to_fs(location)
    return system, path


def is_web(system: Any) -> bool:
    """Whether a file system is fsspec's for web servers (http:// and https://)."""
    return "http" in system.protocol  # its names: a text, or several


def retry(call: Callable[[], Result], what: str, tries: int, is_final: Callable[[Exception], bool]) -> Result:
    """The result of a request, asked for at most `tries` times with growing pauses (`hpc.base.patience.pause_s`).

    Raises the last error, at once where `is_final` says that another try would end in the same.
    """
    for attempt in range(1, tries + 1):
        try:
            return call()
        except Exception as error:  # each store's client has exceptions of its own
            if attempt == tries or is_final(error):
                raise
            pause = pause_s(attempt, 0.25, LONGEST_PAUSE_S)
            log.warning("%s: %s: trying again in %.1f s (%d of %d)", what, error, pause, attempt, tries)
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")
