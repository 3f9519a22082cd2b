"""Append-only event logs, one writer each: the fast path for status. Markers are the truth; a journal may lack its
last line.

Events (JSON objects, one a line): start, segment, done, failed, ended, engine, stop. `t` is the writer's wall clock,
used for rates within one journal and for display.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc.base import atomic

log = logging.getLogger(__name__)


class Journal:
    """The writer. A line is one write(2) to a file that nobody else appends to."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._torn = False

    def write(self, event: str, **facts: Any) -> None:
        line = atomic.as_json({"t": round(time.time(), 3), "event": event, **facts}) + b"\n"
        if self._torn:  # a full disk took half of the last line: close it, so that it does not spoil this one
            line = b"\n" + line
        try:
            self._torn = os.write(self._fd, line) < len(line)
        except OSError as error:  # a full disk must not stop the work: status falls back on the markers
            log.warning("journal: %s (status will read the markers instead)", error)

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Complete events from a byte offset on, and the offset to go on from. Torn lines are skipped."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_parse(whole)), offset + len(whole)


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:  # a line torn by a crash or a full disk
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
