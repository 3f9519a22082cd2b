"""What is said of a damaged file of a run: which, why, what is lost, what to do. Once a process, on stderr."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

log = logging.getLogger("run")


def text(path: Path, why: object, lost: str) -> str:
    return f"{path} is damaged: {why}. {lost}"


@functools.cache
def say(what: str) -> None:
    """Warn, once: the file is left out, and what can go on does."""
    log.warning("%s", what)
