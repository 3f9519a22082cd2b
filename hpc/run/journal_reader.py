"""What the journals of a run say, read on from where the last look stopped: what status needs, not the events."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base import journal

HISTORY_S = 600
WINDOW_S = 3600.0  # the longest that rates are asked over


@dataclass
class Saved:
    """What the latest owner of an unfinished shard has saved, taken over or done itself.

    epoch: that owner's; -1 where only slots of an earlier version wrote, who did not say.
    blocks: samples by status, by the first sample of their block.
    """

    epoch: int
    blocks: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, start: int, counts: dict[str, int]) -> None:
        known = self.blocks.get(start, {}) if self.epoch >= 0 else {}  # earlier versions named segments again
        self.blocks[start] = {s: counts.get(s, 0) + known.get(s, 0) for s in {**known, **counts}}


@dataclass
class Activity:
    """What one life of a slot did, by its journal. Times are its own clock's."""

    host: str = ""
    first: float = 0.0
    last: float = 0.0
    begun: float = 0.0  # first claim
    worked: float = 0.0  # last segment
    samples: int = 0
    deaths: Counter[str] = field(default_factory=Counter)  # of engines: "0: killed by SIGKILL"
    failures: Counter[str] = field(default_factory=Counter)  # of shards' attempts, by reason
    minutes: dict[str, Counter[int]] = field(default_factory=dict)  # by engine: samples a minute, over the last hour


class JournalReader:
    """All journals of a run, read on from where the last call stopped. Keeps what status needs, not the events.

    Args:
        submissions: read only their journals (another identity's shards have the same names).
    """

    def __init__(self, folder: Path, submissions: set[str] | None = None) -> None:
        self._folder = folder
        self.submissions = submissions
        self.offsets: dict[str, int] = {}
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        self.failed: dict[tuple[str, int], dict[str, Any]] = {}
        self.partial: dict[tuple[str, int], Saved] = {}
        self.rates: Counter[int] = Counter()  # samples by second, over the last hour
        self.lives: dict[str, Activity] = {}  # by instance
        self.history: Counter[int] = Counter()  # samples by ten minutes, of the whole run
        self.first = self.last = 0.0

    def refresh(self) -> None:
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else []:
            if self.submissions is not None and path.name.partition("-")[0] not in self.submissions:
                continue
            events, self.offsets[path.name] = journal.read(path, self.offsets.get(path.name, 0))
            life = self.lives.setdefault(path.stem, Activity())
            for event in events:
                with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # damaged: as good as torn
                    self._take(event, life)
        oldest = self.last - 2 * WINDOW_S
        for second in [s for s in self.rates if s < oldest]:
            del self.rates[second]
        for life in self.lives.values():
            for minutes in life.minutes.values():
                for minute in [m for m in minutes if m * 60 < oldest]:
                    del minutes[minute]

    def _take(self, event: dict[str, Any], life: Activity) -> None:
        kind, t = event["event"], float(event.get("t", 0.0))
        self.last = max(self.last, t)
        self.first = min(self.first or t, t)
        life.last, life.first = max(life.last, t), min(life.first or t, t)
        at = (event.get("shard", ""), event.get("g", 0))
        if kind == "done":
            self.done[at] = event
            self.partial.pop(at, None)
        elif kind == "failed":
            self.failed[at] = event
        elif kind == "segment":
            self._segment(event, at, life, t)
        elif kind == "engine":
            life.deaths[f"{event.get('engine', 0)}: {event['died']}"] += 1
        elif kind == "ended" and event.get("how") == "failed":
            life.failures[str(event.get("reason", "unknown"))] += 1
        elif kind == "claim":
            life.begun = life.begun or t
        elif kind == "start":
            life.host = str(event.get("host", ""))

    def _segment(self, event: dict[str, Any], at: tuple[str, int], life: Activity, t: float) -> None:
        # Who takes a shard over names what it adopts; what a zombie saves beside it counts no more.
        epoch = event.get("e", -1)
        if at not in self.done and (at not in self.partial or self.partial[at].epoch < epoch):
            self.partial[at] = Saved(epoch)
        if at in self.partial and self.partial[at].epoch == epoch:
            self.partial[at].add(event["start"], event["counts"])
        if not event["adopted"]:
            count = sum(event["counts"].values())
            life.samples += count
            life.worked = t
            self.rates[int(t)] += count
            self.history[int(t) // HISTORY_S] += count
            life.minutes.setdefault(str(event.get("engine", 0)), Counter())[int(t) // 60] += count

    def over_time(self) -> list[tuple[float, int, int]]:
        """(start, seconds, samples) of even bins over the run: of ten minutes, or finer where the run is short."""
        if self.last - self.first > WINDOW_S:
            return [(float(b * HISTORY_S), HISTORY_S, self.history[b]) for b in sorted(self.history)]
        width = max(1, int(self.last - self.first) // 60)
        bins: Counter[int] = Counter()
        for second, count in self.rates.items():
            bins[second // width] += count
        return [(float(b * width), width, bins[b]) for b in sorted(bins)]

    @property
    def deaths(self) -> Counter[str]:
        """Deaths of engines by reason."""
        total: Counter[str] = Counter()
        for life in self.lives.values():
            for death, count in life.deaths.items():
                total[death.partition(": ")[2]] += count
        return total

    # --- for the cache ----------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Everything but `done` and `failed`, which have been counted."""
        partial = [[*at, found.epoch, list(found.blocks.items())] for at, found in self.partial.items()]
        lives = {name: vars(life) for name, life in self.lives.items()}
        return {
            "offsets": self.offsets, "partial": partial, "rates": self.rates, "lives": lives,
            "first": self.first, "last": self.last, "history": self.history,
        }  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        self.offsets, self.first, self.last = saved["offsets"], saved["first"], saved["last"]
        for shard, generation, epoch, blocks in saved["partial"]:
            self.partial[shard, generation] = Saved(epoch, dict(blocks))
        self.rates = Counter({int(second): n for second, n in saved["rates"].items()})
        self.history = Counter({int(bin): n for bin, n in saved["history"].items()})
        for name, life in saved["lives"].items():
            minutes = {e: Counter({int(m): n for m, n in c.items()}) for e, c in life.pop("minutes").items()}
            deaths, failures = Counter(life.pop("deaths")), Counter(life.pop("failures"))
            self.lives[name] = Activity(**life, deaths=deaths, failures=failures, minutes=minutes)
