"""One launch of a run at a time: what one has submitted, the next one sees."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc import atomic
from hpc.errors import UserError
from hpc.rundir import Run

SUBMITTING_S = 60.0  # that a launch waits for another one that submits


@contextmanager
def alone(run: Run, patience: float = 0.0) -> Iterator[None]:
    """Hold `control/launching` of a run. One that a killed process of this host left behind is taken over.

    Raises UserError where another launch holds it, after waiting for it for `patience` seconds.
    """
    lock, end = run.control / "launching", time.monotonic() + patience
    mine = atomic.as_json({"host": socket.gethostname(), "pid": os.getpid(), "t": time.time()})
    while not atomic.create(lock, mine):
        held = _read(lock)
        if held and held["host"] == socket.gethostname() and not Path("/proc", str(held["pid"])).exists():
            _remove(lock, held)
        elif held and time.monotonic() >= end:
            raise UserError(
                f"launch: another launch, process {held['pid']} on {held['host']}, is at work on {run.path}. "
                f"Wait for it; if it was killed, remove {lock}."
            )
        elif held:
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _read(lock: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(lock.read_bytes()))
    except FileNotFoundError:
        return {}


def _remove(lock: Path, dead: dict[str, Any]) -> None:
    """Out of several launches that saw the same dead one, none removes the lock that another has taken since."""
    grave = atomic.temporary(lock)
    try:
        lock.rename(grave)
    except FileNotFoundError:
        return
    if _read(grave) != dead:
        os.link(grave, lock)
    grave.unlink()
