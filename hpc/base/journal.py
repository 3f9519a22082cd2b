"""Append-only event logs, one writer each: the fast path for status. Markers are the truth; a journal may lack its
last line.

Events (JSON objects, one a line): start, segment, measured, done, failed, ended, engine, stop. `t` is the writer's wall
clock, used for rates within one journal and for display.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from hpc.base import atomic, damage

log = logging.getLogger(__name__)

# json.loads calls this after checks that take as long again; a run has millions of lines.
_decode = json.JSONDecoder().raw_decode


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
    data, offset = complete_lines(path, offset)
    return [event for line in data.split(b"\n") if (event := parse(line))], offset


def complete_lines(path: Path, offset: int = 0) -> tuple[bytes, int]:
    """The bytes of all complete lines from a byte offset on, and the offset to go on from. Lines may be damaged."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return b"", offset
    except (IsADirectoryError, PermissionError) as error:  # these stay; after others, such as EIO, the process restarts
        damage.warn_once(damage.message(path, error.strerror, "What it tells of its slot's work is left out."))
        return b"", offset
    whole = data if data.endswith(b"\n") else data[: data.rfind(b"\n") + 1]
    return whole, offset + len(whole)


def parse(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None for a line that was torn by a crash or a full disk."""
    text = line.decode("utf-8", "replace")
    try:
        found, end = _decode(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found and not text[end:].strip() else None
