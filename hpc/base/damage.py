"""What is said of a damaged file of a run: which, why, what is lost, what to do. A process says it once, on stderr."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

log = logging.getLogger("run")


def message(path: Path, why: object, lost: str) -> str:
    return f"{path} is damaged: {why}. {lost}"


@functools.cache
def warn_once(what: str) -> None:
    """Log a warning, the first time that this process has it to say. The caller goes on without the file."""
    log.warning("%s", what)
