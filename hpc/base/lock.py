"""One at a time, among all machines that share a file system: launches of a run, and who publishes it.

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

log = logging.getLogger(__name__)

_TOUCH_S, _DEAD_S = 3.0, 60.0


@contextmanager
def hold(lock: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock; one that a killed process left behind is taken over.

    Args:
        what: is done under it, for people ("launch"). patience: seconds.

    Raises:
        UserError: another process lives and holds it still after `patience` seconds.
    """
    mine = {"token": uuid.uuid4().hex, **process()}
    try:
        _take(lock, mine, what, patience)
    except PermissionError as error:
        raise UserError(f"{what}: {lock.parents[1]} is not yours to {what}: {error}.") from error
    released = threading.Event()
    toucher = threading.Thread(target=_touch, args=(lock, released), name=lock.name, daemon=True)
    toucher.start()
    try:
        yield
    finally:
        released.set()
        toucher.join(_TOUCH_S)  # not for ever: the file system may hang
        if _read(lock)[0].get("token") == mine["token"]:
            lock.unlink(missing_ok=True)


def _take(lock: Path, mine: dict[str, Any], what: str, patience: float) -> None:
    end = time.monotonic() + patience
    seen, since, lives, told = _read(lock), time.monotonic(), False, False
    while not atomic.create(lock, atomic.as_json(mine), durable=False):
        held = _read(lock)
        if held != seen:
            lives = held[0] == seen[0] != {}
            seen, since = held, time.monotonic()
        facts, silent = held[0], time.monotonic() - since
        if silent > 2 * _DEAD_S:  # who took its place was killed as it did
            raise UserError(f"{what}: one that was killed has left {lock} behind. Remove {lock.parent}/{lock.name}*.")
        if facts and (gone(facts) or silent > _DEAD_S):
            _remove(lock, facts)
        elif facts and not told:
            told = True
            log.warning("%s: another one, process %s on %s, is at work or was killed: waiting to see which",
                        what, facts["pid"], facts["host"])  # fmt: skip
        elif lives and time.monotonic() >= end:
            who = f"process {facts['pid']} on {facts['host']}"
            raise UserError(f"{what}: another {what}, {who}, is at work in {lock.parents[1]}. Wait for it, or stop it.")
        time.sleep(0.2)


def _touch(lock: Path, released: threading.Event) -> None:
    while not released.wait(_TOUCH_S):
        try:
            os.utime(lock)
        except OSError:
            pass  # tried again; if it stays so, another one may take over


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
    """Remove a dead one's lock, and no other: out of those that saw the same one dead, one wins."""
    won = lock.with_name(f"{lock.name}.over-{dead['token']}")
    if not atomic.create(won, b""):
        return
    if _read(lock)[0] == dead:
        lock.unlink(missing_ok=True)
    won.unlink()


def process() -> dict[str, Any]:
    """What tells this process from all others, for `gone`."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), **_place()}


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


def near(facts: dict[str, Any]) -> bool:
    """Whether the number of a process means something here."""
    return all(facts[name] == value for name, value in _place().items())


def gone(facts: dict[str, Any]) -> bool:
    """Whether the holder is a process of this place that has ended. Not by /proc alone, which may hide others'."""
    if not near(facts):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _started(facts["pid"])
    return bool(now) and now != facts["started"]
