"""One at a time, among all machines that share a file system: launches of a run, and who publishes it.

The lock is a file that its holder touches every few seconds. As with heartbeats, no two machines' clocks are compared:
who waits for it remembers when, by its own clock, it first saw the lock as it is now. A holder whose lock has not
changed for a minute counts as dead.
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
        what: what is done under the lock, for messages ("launch").
        patience: seconds to wait for another process that holds it.

    Raises:
        UserError: another process is alive and holds it still after `patience` seconds.
    """
    mine = {"token": uuid.uuid4().hex, **this_process()}
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
        toucher.join(_TOUCH_S)  # with a limit: the file system may hang
        if _read(lock)[0].get("token") == mine["token"]:
            lock.unlink(missing_ok=True)


def _take(lock: Path, mine: dict[str, Any], what: str, patience: float) -> None:
    end = time.monotonic() + patience
    seen, since = _read(lock), time.monotonic()  # the lock as it is now, and since when, by our clock
    is_alive = is_logged = False
    while not atomic.create(lock, atomic.as_json(mine), durable=False):
        held = _read(lock)
        if held != seen:
            is_alive = held[0] == seen[0] != {}  # the same holder has touched it
            seen, since = held, time.monotonic()
        holder, silent = held[0], time.monotonic() - since
        if silent > 2 * _DEAD_S:  # a process that was removing the dead holder's lock was killed itself: see _remove
            raise UserError(f"{what}: one that was killed has left {lock} behind. Remove {lock.parent}/{lock.name}*.")
        if holder and (has_ended(holder) or silent > _DEAD_S):
            _remove(lock, holder)
        elif holder and not is_logged:
            is_logged = True
            log.warning("%s: another one, process %s on %s, is at work or was killed: waiting to see which",
                        what, holder["pid"], holder["host"])  # fmt: skip
        elif is_alive and time.monotonic() >= end:
            who = f"process {holder['pid']} on {holder['host']}"
            raise UserError(f"{what}: another {what}, {who}, is at work in {lock.parents[1]}. Wait for it, or stop it.")
        time.sleep(0.2)


def _touch(lock: Path, released: threading.Event) -> None:
    while not released.wait(_TOUCH_S):
        try:
            os.utime(lock)
        except OSError:
            pass  # tried again; if it stays so, another one may take over


def _read(lock: Path) -> tuple[dict[str, Any], int]:
    """(what its holder wrote, time of the last touch) of a lock; ({}, 0) where there is none.

    The file is opened, since NFS asks its server only then; a stat alone may be answered from a cache.
    """
    try:
        with lock.open("rb") as file:
            return dict(json.load(file)), os.fstat(file.fileno()).st_mtime_ns
    except PermissionError:
        raise
    except (OSError, ValueError):
        return {}, 0


def _remove(lock: Path, dead: dict[str, Any]) -> None:
    """Remove the lock of a dead holder, and no other's.

    Several processes may see the holder dead. Only the one that creates `<lock>.over-<token>` removes the lock, so that
    a slower one does not remove the lock of whoever takes it next.
    """
    removing = lock.with_name(f"{lock.name}.over-{dead['token']}")
    if not atomic.create(removing, b""):
        return
    if _read(lock)[0] == dead:
        lock.unlink(missing_ok=True)
    removing.unlink()


def this_process() -> dict[str, Any]:
    """What tells this process from all others, for `has_ended`."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), **_this_machine()}


def _this_machine() -> dict[str, Any]:
    """Where a process number means the same process: this host since its boot, and this namespace of processes."""
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


def is_same_machine(facts: dict[str, Any]) -> bool:
    """Whether the process that `this_process` described ran where we run, so that its number can be asked for."""
    return all(facts[name] == value for name, value in _this_machine().items())


def has_ended(facts: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; False for one of another machine. /proc alone would not tell: it
    may hide other users' processes.
    """
    if not is_same_machine(facts):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _started(facts["pid"])
    return bool(now) and now != facts["started"]
