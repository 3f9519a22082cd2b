"""Circuit breakers: a wrong prompt must not fail 130,000 shards, and a broken node must not fail what others could do.

A slot stops when its first `map.breaker` shards have all failed with one fingerprint, or when three engines have died
in their set-up with one fingerprint before anything succeeded (deaths by a signal do not count: they tell of the
machine). If slots on other nodes succeed, the node is at fault: it is excluded (`control/excluded/<host>`), and no
later life of a slot works there, wherever Slurm requeues it. If nothing succeeds, the run is at fault: it is paused
with that reason. A run is also paused when its rows are no longer like those of its pilot (hpc.map.compare).
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
        self._is_over = limit < 1  # something has succeeded: nothing is counted any more

    def success(self) -> None:
        self._is_over = True

    def failure(self, shard: str, reason: str) -> str:
        """Count a failed attempt. Returns the reason to stop, "" to go on."""
        if self._is_over:
            return ""
        self._failed.setdefault(reason, set()).add(shard)
        if len(self._failed) > 1 or len(self._failed[reason]) < self._limit:
            return ""
        return f"the first {self._limit} shards of a slot failed alike: {reason}"

    def death(self, reason: str, words: str) -> str:
        """Count an engine that died in set-up with these last words. Returns the reason to stop, "" to go on."""
        if self._is_over:
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
    """Exclude the node `host` if slots of this submission succeed on others. Returns why this slot stops."""
    if not successful(run, submission) - {host}:
        return reason
    exclude(run, host, reason)
    return f"node {host} is excluded, others do well: {reason}"


def stop(run: Run, submission: str, host: str, reason: str) -> str:
    """Exclude the node where slots on others succeed, or pause the run where none succeeds. Returns the reason with
    which this slot ends.
    """
    fault = blame_node(run, submission, host, reason)
    if fault == reason and not successful(run, submission):
        pause(run, reason)
        return f"paused: {reason}"
    return fault


def reason_to_give_up(run: Run, instance: str, life: int) -> str:
    """Why this slot should not be requeued again: its last LIVES lives all ended without progress. "" otherwise."""
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
    """The reason in a file. A person may have made the file by `touch`, or have removed it since it was listed."""
    try:
        return json.loads(path.read_bytes())["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return "by hand"
