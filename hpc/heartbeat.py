"""Signs of life of a slot, and how others judge them: without comparing any two machines' clocks.

A slot's agent replaces `slots/<instance>.json` with a growing `beat`. An observer remembers when, by its own monotonic clock, it
first saw the present beat; a beat that does not change for `lease_s` means death. A slot that cannot write its heartbeat stops
claiming and publishing before that (`Heartbeat.fenced`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from hpc import atomic

log = logging.getLogger(__name__)

FENCE_SHARE = 0.6  # of a lease without a written heartbeat, after which a slot counts itself as superseded


def register(slots: Path, submission: str, slot: int, facts: dict[str, Any]) -> tuple[str, int]:
    """Take a new life of a slot: (instance, life). The name is created exclusively and never reused."""
    life = 0
    while True:
        instance = f"{submission}-{slot:04d}-{life}"
        data = json.dumps({**facts, "instance": instance, "slot": slot, "life": life, "beat": 0}).encode()
        if atomic.create(slots / f"{instance}.json", data):
            return instance, life
        life += 1


def same_slot(instance: str, other: str) -> bool:
    """Whether two instances are lives of one slot of one submission."""
    return instance.rsplit("-", 1)[0] == other.rsplit("-", 1)[0]


def read(slots: Path, instance: str) -> dict[str, Any]:
    try:
        return json.loads((slots / f"{instance}.json").read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def read_all(slots: Path) -> list[dict[str, Any]]:
    try:
        names = sorted(n for n in os.listdir(slots) if n.endswith(".json") and not n.startswith("."))
    except FileNotFoundError:
        return []
    return [found for n in names if (found := read(slots, n.removesuffix(".json")))]


class Heartbeat:
    """The writer's side."""

    def __init__(self, slots: Path, instance: str, lease_s: float) -> None:
        self._path = slots / f"{instance}.json"
        self._lease_s = lease_s
        self._interval = min(30.0, lease_s / 6)
        self._written = time.monotonic()
        self._due = 0.0
        self._beat = 0

    def advance(self, facts: dict[str, Any], *, force: bool = False) -> None:
        """Called by the agent's main loop; writes when due. A failed write is logged, and tried again at the next call."""
        self._beat += 1
        now = time.monotonic()
        if now < self._due and not force:
            return
        try:
            atomic.replace(self._path, json.dumps({**facts, "beat": self._beat, "t": time.time()}).encode())
        except OSError as error:
            log.warning("heartbeat: cannot write %s: %s", self._path, error)
            return
        self._written = time.monotonic()
        self._due = now + self._interval

    def fenced(self) -> bool:
        """True when others may soon take this slot for dead: then it must neither claim nor publish."""
        return time.monotonic() - self._written > FENCE_SHARE * self._lease_s


class Observer:
    """The reader's side: which instances are dead."""

    def __init__(self, slots: Path, me: str, lease_s: float) -> None:
        self._slots = slots
        self._me = me
        self._lease_s = lease_s
        self._seen: dict[str, tuple[Any, float]] = {}
        self._cache: dict[str, tuple[float, dict[str, Any]]] = {}

    def dead(self, instance: str) -> bool:
        """Whether an instance's claims may be taken over now."""
        if not instance:  # the claim's content never became visible: only its age by our clock can tell
            return self._unchanged(instance, None)
        if same_slot(instance, self._me) and instance != self._me:
            return True
        facts = self._read(instance)
        if facts.get("state") == "exited":
            return True
        return self._unchanged(instance, facts.get("beat"))

    def _read(self, instance: str) -> dict[str, Any]:
        """A heartbeat, read at most twelve times a lease: many shards share an owner, and many slots may be asking."""
        now = time.monotonic()
        if instance not in self._cache or now - self._cache[instance][0] > self._lease_s / 12:
            self._cache[instance] = (now, read(self._slots, instance))
        return self._cache[instance][1]

    def _unchanged(self, instance: str, beat: Any) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(instance, (object(), now))
        if before != beat:
            self._seen[instance] = (beat, now)
            return False
        return now - since > self._lease_s
