"""One launch of a run at a time: what one has submitted, the next one sees.

The lock is a file that its holder touches every few seconds. As with heartbeats, no two machines' clocks are compared:
who waits for it remembers when, by its own clock, it first saw the lock as it is now, and takes one that does not
change for a minute for dead.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.base.errors import UserError
from hpc.run.directory import Run

log = logging.getLogger(__name__)

SUBMITTING_S = 300.0  # that a launch waits for another one that submits
_TOUCH_S, _DEAD_S = 3.0, 60.0


@contextmanager
def launch_lock(run: Run, patience: float = 0.0) -> Iterator[None]:
    """Hold `control/launching` of a run; one that a killed launch left behind is taken over.

    Raises UserError where another launch lives and holds it still after `patience` seconds.
    """
    lock = run.control / "launching"
    mine = {"token": uuid.uuid4().hex, "pid": os.getpid(), "started": _started(os.getpid()), **_place()}
    try:
        _take(lock, mine, patience)
    except PermissionError as error:
        raise UserError(f"launch: {run.path} is not yours to launch: {error}.") from error
    released = threading.Event()
    toucher = threading.Thread(target=_touch, args=(lock, released), name="launching", daemon=True)
    toucher.start()
    try:
        yield
    finally:
        released.set()
        toucher.join(_TOUCH_S)  # not for ever: the file system may hang
        if _read(lock)[0].get("token") == mine["token"]:
            lock.unlink(missing_ok=True)


def _take(lock: Path, mine: dict[str, Any], patience: float) -> None:
    end = time.monotonic() + patience
    seen, since, lives, told = _read(lock), time.monotonic(), False, False
    while not atomic.create(lock, atomic.as_json(mine), durable=False):
        held = _read(lock)
        if held != seen:
            lives = held[0] == seen[0] != {}
            seen, since = held, time.monotonic()
        facts, silent = held[0], time.monotonic() - since
        if silent > 2 * _DEAD_S:  # who took its place was killed as it did
            raise UserError(f"launch: one that was killed has left {lock} behind. Remove {lock.parent}/launching*.")
        if facts and (_gone(facts) or silent > _DEAD_S):
            _remove(lock, facts)
        elif facts and not told:
            told = True
            log.warning("launch: another one, process %s on %s, is at work or was killed: waiting to see which",
                        facts["pid"], facts["host"])  # fmt: skip
        elif lives and time.monotonic() >= end:
            who = f"process {facts['pid']} on {facts['host']}"
            raise UserError(f"launch: another launch, {who}, is at work in {lock.parents[1]}. Wait for it, or stop it.")
        time.sleep(0.2)


def _touch(lock: Path, released: threading.Event) -> None:
    while not released.wait(_TOUCH_S):
        try:
            os.utime(lock)
        except OSError:
            pass  # tried again; if it stays so, another launch may take over


def _read(lock: Path) -> tuple[dict[str, Any], int]:
    """(facts, time of the last touch) of a lock, ({}, 0) where there is none. NFS asks its server at an open."""
    try:
        with lock.open("rb") as file:
            return dict(json.load(file)), os.fstat(file.fileno()).st_mtime_ns
    except PermissionError:
        raise
    except (OSError, ValueError):
        return {}, 0


def _remove(lock: Path, dead: dict[str, Any]) -> None:
    """Remove a dead launch's lock, and no other: out of those that saw the same one dead, one wins."""
    won = lock.with_name(f"{lock.name}.over-{dead['token']}")
    if not atomic.create(won, b""):
        return
    if _read(lock)[0] == dead:
        lock.unlink(missing_ok=True)
    won.unlink()


def _place() -> dict[str, Any]:
    """Where a process' number means something: this boot of this host, this namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "space": space.stat().st_ino if space.exists() else 0,
    }


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" where that cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _gone(facts: dict[str, Any]) -> bool:
    """Whether the holder is a process of this place that has ended. Not by /proc alone, which may hide others'."""
    if any(facts[name] != value for name, value in _place().items()):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _started(facts["pid"])
    return bool(now) and now != facts["started"]
