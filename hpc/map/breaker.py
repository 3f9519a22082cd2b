"""Circuit breakers: a wrong prompt must not burn 130,000 shards, and a broken node must not eat what others could do.

A slot stops whose first `map.breaker` shards all fail with one fingerprint, and one whose engines die in set-up three
times with one fingerprint before anything succeeded (a death by a signal tells of the machine: it does not count). If
slots on other nodes succeed, the node is at fault: it is excluded (`control/excluded/<host>`), and no later life of a
slot works there, wherever Slurm requeues it. If nothing succeeds, the run is at fault: it is paused with that reason.
So is a run whose rows are no longer like those of its pilot (hpc.map.compare).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from hpc.base import atomic, heartbeat
from hpc.run.directory import Run

SETUP_DEATHS = 3  # with one fingerprint
GAVE_UP = "gave up: "
LIVES = 5  # of a slot in a row without a finished sample or shard, after which it is not requeued


class Breaker:
    """Counts a slot's outcomes from its start to its first success. limit: shards; 0 counts nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failed: dict[str, set[str]] = {}  # fingerprint -> shards
        self._died: Counter[str] = Counter()  # in set-up, by fingerprint
        self._closed = limit < 1

    def success(self) -> None:
        self._closed = True

    def failure(self, shard: str, reason: str) -> str:
        """Count a failed attempt. Returns the reason to stop, "" to go on."""
        if self._closed:
            return ""
        self._failed.setdefault(reason, set()).add(shard)
        if len(self._failed) > 1 or len(self._failed[reason]) < self._limit:
            return ""
        return f"the first {self._limit} shards of a slot failed alike: {reason}"

    def death(self, reason: str, words: str) -> str:
        """Count an engine that died in set-up with these last words. Returns the reason to stop, "" to go on."""
        if self._closed:
            return ""
        self._died[reason] += 1
        return f"{SETUP_DEATHS} engines died alike in set-up: {words}" if self._died[reason] == SETUP_DEATHS else ""


def successful(run: Run, submission: str) -> set[str]:
    """Nodes on which slots of a submission have finished samples."""
    return {
        facts.get("host", "")
        for facts in heartbeat.read_all(run.slots)
        if facts.get("good", 0) > 0 and facts.get("submission") == submission
    }


def blame_node(run: Run, submission: str, host: str, reason: str) -> str:
    """Exclude a node if others do well; says so in the reason."""
    if not successful(run, submission) - {host}:
        return reason
    exclude(run, host, reason)
    return f"node {host} is excluded, others do well: {reason}"


def stop(run: Run, submission: str, host: str, reason: str) -> str:
    """What a slot ends with that stops for this reason: the node is excluded where others do well, else the run pauses
    where nothing succeeds.
    """
    fault = blame_node(run, submission, host, reason)
    if fault == reason and not successful(run, submission):
        pause(run, reason)
        return f"paused: {reason}"
    return fault


def hopeless(run: Run, instance: str, life: int) -> str:
    """Why requeuing this slot does not help: its last lives have all ended without progress. "" where it may."""
    if life < LIVES:
        return ""
    prefix = instance.rpartition("-")[0]
    last = [heartbeat.read(run.slots, f"{prefix}-{i}") for i in range(life - LIVES, life)]
    if any(facts.get("rows") or facts.get("settled") for facts in last):
        return ""
    return f"{GAVE_UP}{LIVES} lives without progress, the last: {last[-1].get('why') or 'it was killed'}"


def pause(run: Run, reason: str) -> None:
    """Stop the whole run: agents drain, a launch goes on. The first reason stands."""
    atomic.create(run.control / "pause", reason.encode())


def exclude(run: Run, host: str, reason: str) -> None:
    """Take a node out of this run until somebody removes its file."""
    folder = run.control / "excluded"
    folder.mkdir(exist_ok=True)
    atomic.create(folder / host, json.dumps({"reason": reason}).encode())


def excluded(run: Run) -> dict[str, str]:
    """Reason by node."""
    folder = run.control / "excluded"
    try:
        names = [n for n in os.listdir(folder) if not n.startswith(".")]
    except FileNotFoundError:
        return {}
    return {name: _reason(folder / name) for name in sorted(names)}


def _reason(path: Path) -> str:
    """The reason in a file; a person may have made it by `touch`, or just removed it."""
    try:
        return json.loads(path.read_bytes())["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return "by hand"
