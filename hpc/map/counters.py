"""Counters for `hpc.status --openmetrics`: what a run's slots have ever done, lost work and work for other identities
included. They are sums over its journals, and only grow.

How far each journal was read, and its sums until there, stand in `<run>/tally/work.json`. That is a cache: it is made
again from the journals where it is missing or has another format.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base import atomic, heartbeat, journal
from hpc.map.life import cluster_of
from hpc.run.allocations import Allocations
from hpc.run.directory import Run

FORMAT = 2  # of the cache


@dataclass
class LifeCounters:
    """Sums over one life of a slot, or over all lives. Every number only grows.

    samples: by status, where one that was done twice counts twice; tokens: of published rows; shards: published;
    deaths: of engines, and failures: of attempts at shards, by reason. offset: bytes of the journal that were read.
    first, last: the earliest and latest sign of life, seconds of its own clock; up: the latest, seconds since boot.
    engines: of its node, 0 where the journal does not say. allocation: its name in hpc.run.allocations.
    """

    offset: int = 0
    first: float = 0.0
    last: float = 0.0
    engines: int = 0
    allocation: str = ""
    up: float = 0.0
    tokens: int = 0
    shards: int = 0
    samples: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> LifeCounters:
        counters = {name: Counter(saved[name]) for name in ("samples", "deaths", "failures")}
        return cls(**{**saved, **counters})

    def take(self, event: dict[str, Any]) -> None:
        """Count one event of a journal."""
        self.seen(float(event.get("t", 0.0)))
        kind = event["event"]
        if kind == "segment" and not event["adopted"]:
            self.samples.update({str(status): int(count) for status, count in event["counts"].items()})
        elif kind == "done":
            self.shards += 1
            self.tokens += int(event.get("tokens", 0))
        elif kind == "engine":
            self.deaths[str(event["died"])] += 1
        elif kind == "ended" and event.get("how") == "failed":
            self.failures[str(event.get("reason", "unknown"))] += 1
        elif kind == "start":
            self.engines, self.allocation = int(event.get("engines", 0)), str(event.get("allocation", ""))

    def seen(self, t: float) -> None:
        self.first, self.last = min(self.first or t, t), max(self.last, t)


@dataclass
class RunCounters:
    """Sums over a whole run. lives: of its slots; restarts: those lives that were not the first of their slot."""

    sums: LifeCounters
    lives: int
    restarts: int
    engine_seconds: float


def count(run: Run) -> RunCounters:
    """Read on in all journals of a run."""
    file = run.path / "tally" / "work.json"
    known = _load(file)
    for path in sorted(run.journals.glob("*.jsonl")) if run.journals.is_dir() else []:
        life = known.setdefault(path.stem, LifeCounters())
        events, life.offset = journal.read(path, life.offset)
        for event in events:
            with contextlib.suppress(
                KeyError, TypeError, ValueError, AttributeError
            ):  # damaged: passed over, as a torn line is
                life.take(event)
    # A slot that loads its model, or idles, says nothing in its journal.
    for beat in heartbeat.read_all(run.slots):
        if (found := known.get(str(beat.get("instance")))) and found.first:
            found.seen(float(beat.get("t") or found.last))
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of an earlier version, or without a word yet
                found.up = max(found.up, float(beat["time"]["up"]))
    _save(file, known)
    return _sum(run, known)


def _sum(run: Run, known: dict[str, LifeCounters]) -> RunCounters:
    engines = {submission.uuid: cluster_of(submission).workers_per_node for submission in run.submissions()}
    total, seen = RunCounters(LifeCounters(), len(known), 0, 0.0), Allocations(run.allocations).refresh()
    for instance, life in known.items():
        for name in ("samples", "deaths", "failures"):
            getattr(total.sums, name).update(getattr(life, name))
        total.sums.tokens += life.tokens
        total.sums.shards += life.shards
        total.restarts += not instance.endswith("-0")
        # Journals of an earlier version do not name the engines.
        there = life.engines or engines.get(instance.partition("-")[0], 1)
        allocation = seen.pop(life.allocation, None)
        lasted = allocation.lasted(life.up or None) if allocation else life.last - life.first
        total.engine_seconds += there * (lasted or 0.0)
    for allocation in seen.values():  # lives whose worker never registered
        total.engine_seconds += engines.get(allocation.launch, 1) * (allocation.lasted() or 0.0)
    return total


def _load(file: Path) -> dict[str, LifeCounters]:
    try:
        saved = json.loads(file.read_bytes())
        return (
            {name: LifeCounters.restore(life) for name, life in saved["lives"].items()}
            if saved["format"] == FORMAT
            else {}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(file: Path, known: dict[str, LifeCounters]) -> None:
    """Best effort: a reader without the right to write reads from the start again."""
    data = atomic.as_json({"format": FORMAT, "lives": {name: vars(life) for name, life in known.items()}})
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        atomic.replace(file, data)
