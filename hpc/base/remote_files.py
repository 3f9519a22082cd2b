"""Files at URLs: the file system of one, and requests that are tried again while a store does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from hpc.base import patience

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 20.0
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
    """The result of a request to a store, asked for as `hpc.base.patience.retry` does; each pause is logged."""

    def waiting(error: Exception, attempt: int, pause: float) -> None:
        log.warning("%s: %s: trying again in %.1f s (%d of %d)", what, error, pause, attempt, tries)

    return patience.retry(call, tries, is_final, FIRST_PAUSE_S, LONGEST_PAUSE_S, waiting=waiting)
