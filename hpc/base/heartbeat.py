"""Signs of life of a slot, and how others judge them: without comparing any two machines' clocks.

A slot's agent replaces `slots/<instance>.json` with a growing `beat`. An observer remembers when, by its own
monotonic clock, it first saw the present beat; a beat that does not change for `lease_s` means death. A slot that
cannot write its heartbeat stops claiming and publishing before that (`Heartbeat.fenced`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.base import atomic

log = logging.getLogger(__name__)

FENCE_SHARE = 0.6  # of a lease without a written heartbeat, after which a slot counts itself as superseded


def register(slots: Path, submission: str, slot: int, facts: dict[str, Any]) -> tuple[str, int]:
    """Register the next life of a slot; returns its instance name and its number. A name is never used again."""
    life = 0
    while True:
        instance = f"{submission}-{slot:04d}-{life}"
        data = atomic.as_json({**facts, "instance": instance, "slot": slot, "life": life, "beat": 0})
        if atomic.create(slots / f"{instance}.json", data):
            return instance, life
        life += 1


def earlier_life(instance: str, other: str) -> bool:
    """Whether `instance` is an earlier life of `other`'s slot. Where both are alive, the later life counts."""
    (slot, _, life), (other_slot, _, other_life) = instance.rpartition("-"), other.rpartition("-")
    return slot == other_slot and int(life) < int(other_life)


def has_successor(slots: Path, instance: str) -> bool:
    """Whether a later life of this instance's slot has registered."""
    slot, _, life = instance.rpartition("-")
    return (slots / f"{slot}-{int(life) + 1}.json").exists()


def read(slots: Path, instance: str) -> dict[str, Any]:
    """The newest heartbeat of an instance; {} where there is none, or its file is damaged."""
    try:
        facts = json.loads((slots / f"{instance}.json").read_bytes())
    except (FileNotFoundError, ValueError):  # ValueError: torn by a machine's crash
        return {}
    return facts if isinstance(facts, dict) else {}


def read_all(slots: Path) -> list[dict[str, Any]]:
    try:
        names = sorted(n for n in os.listdir(slots) if n.endswith(".json") and not n.startswith("."))
    except FileNotFoundError:
        return []
    return [found for n in names if (found := read(slots, n.removesuffix(".json")))]


def newest(slots: Path, exited: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest life of every slot.

    Args:
        exited: heartbeats of lives that have ended, by instance, as an earlier call has left them here: their files are
            not read again. This call replaces the content.
    """
    try:
        names = [n.removesuffix(".json") for n in os.listdir(slots) if n.endswith(".json") and not n.startswith(".")]
    except FileNotFoundError:
        return []
    lives: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):  # lives of one slot by their number: 9 before 10
        lives.setdefault(name.rpartition("-")[0], []).append(name)
    found = {}
    for of_slot in lives.values():
        for name in reversed(of_slot):  # a damaged file is passed over for the life before it
            if facts := exited.get(name) or read(slots, name):
                found[name] = facts
                break
    exited.clear()
    exited.update((name, facts) for name, facts in found.items() if facts.get("state") == "exited")
    return list(found.values())


def alive_here(slots: Path) -> list[dict[str, Any]]:
    """Heartbeats of this machine's slots whose processes live."""
    return [
        facts
        for facts in read_all(slots)
        if facts.get("state") != "exited" and facts.get("host") == socket.gethostname() and _alive(facts.get("pid", 0))
    ]


def _alive(pid: int) -> bool:
    """Whether this process is a worker: the number of a worker that was killed may be another program's by now."""
    try:
        return b"hpc.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Heartbeat:
    """Writes the heartbeat of one instance. lease_s: seconds without one after which others take its claims over."""

    def __init__(self, slots: Path, instance: str, lease_s: float) -> None:
        self._path = slots / f"{instance}.json"
        self._lease_s = lease_s
        self._interval = min(30.0, lease_s / 6)
        self._written = time.monotonic()
        self._failing: float | None = None  # since when no write succeeds
        self._due = 0.0
        self._beat = 0

    def advance(self, facts: dict[str, Any], *, force: bool = False) -> None:
        """Called in each turn of the agent's main loop: writes when a heartbeat is due, or where `force` says so. A
        write that fails is logged, and tried again soon.
        """
        self._beat += 1
        now = time.monotonic()
        if now < self._due and not force:
            return
        try:
            atomic.replace(self._path, atomic.as_json({**facts, "beat": self._beat, "t": time.time()}))
        except OSError as error:
            log.warning("heartbeat: cannot write %s: %s", self._path, error)
            self._due = now + self._interval / 10
            self._failing = self._failing or now
            return
        self._failing = None
        self._written = time.monotonic()
        self._due = now + self._interval

    def failing_s(self) -> float:
        """Seconds since the first of the writes that failed in a row; 0.0 after one that succeeded. A process that was
        stopped for a while (SIGSTOP) has not tried to write, so that this stays 0.0.
        """
        return time.monotonic() - self._failing if self._failing is not None else 0.0

    def fenced(self) -> bool:
        """True when others may soon take this slot for dead: then it must neither claim nor publish."""
        return time.monotonic() - self._written > FENCE_SHARE * self._lease_s


class Observer:
    """Tells which instances are dead. me: the instance that asks."""

    def __init__(self, slots: Path, me: str, lease_s: float) -> None:
        self._slots = slots
        self._me = me
        self._lease_s = lease_s
        self._seen: dict[str, _Sight] = {}

    def dead(self, instance: str) -> bool:
        """Whether an instance's claims may be taken over now. One that has no heartbeat at all counts as dead a lease
        after the first question for it.
        """
        if earlier_life(instance, self._me):
            return True
        now = time.monotonic()
        sight = self._seen.get(instance)
        # Read at most twelve times a lease: many shards share an owner, and many slots may be asking.
        if sight is None or now - sight.read > self._lease_s / 12:
            facts = read(self._slots, instance)
            beat = "exited" if facts.get("state") == "exited" else facts.get("beat")
            since = sight.since if sight is not None and sight.beat == beat else now
            sight = self._seen[instance] = _Sight(beat, since, now)
        return sight.beat == "exited" or sight.read - sight.since > self._lease_s


@dataclass(frozen=True, slots=True)
class _Sight:
    """What an observer saw of an instance.

    since: when, by our clock, it first saw this beat; read: when it last looked.
    """

    beat: Any
    since: float
    read: float


STALE_S = 90.0  # without a heartbeat, by the wall clock: for display alone, takeovers never compare wall clocks
