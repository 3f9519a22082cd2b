"""What the journals of a run say, read on from where the last look stopped: what status needs, not the events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base import journal
from hpc.run.journal_blocks import BlockParser
from hpc.run.ledger import DONE, FAILED

Ended = Callable[[str, int, dict[str, Any]], bool]
"""Called with id, generation and event of a shard that was done or failed, see `JournalReader.refresh`."""

HISTORY_S = 600
BATCH_BYTES = 1 << 24  # of lines that are parsed together
WINDOW_S = 3600.0  # the longest window over which a rate is asked for


@dataclass
class Saved:
    """What the latest owner of an unfinished shard has saved: samples that it adopted, or made itself.

    epoch: that owner's; -1 in journals of an earlier version of this toolkit, which did not record it.
    blocks: samples by status, for each block by its first sample.
    """

    epoch: int
    blocks: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, start: int, counts: dict[str, int]) -> None:
        known = self.blocks.get(start, {}) if self.epoch >= 0 else {}  # earlier versions recorded a block repeatedly
        self.blocks[start] = {s: counts.get(s, 0) + known.get(s, 0) for s in {**known, **counts}}


@dataclass
class Activity:
    """What one life of a slot did, by its journal. Times are its own clock's.

    time: where its time went, see hpc.map.engine_time; None until it has `stopped`. allocation: its name in
    hpc.run.allocations.
    """

    host: str = ""
    first: float = 0.0
    last: float = 0.0
    begun: float = 0.0  # first claim
    worked: float = 0.0  # last segment
    samples: int = 0
    deaths: Counter[str] = field(default_factory=Counter)  # of engines: "0: killed by SIGKILL"
    failures: Counter[str] = field(default_factory=Counter)  # of shards' attempts, by reason
    minutes: dict[str, Counter[int]] = field(default_factory=dict)  # by engine: samples a minute, over the last hour
    job: str = ""
    allocation: str = ""
    time: dict[str, Any] | None = None
    stopped: bool = False


class JournalReader:
    """Sums over all journals of a run. Each `refresh` reads on from where the last one stopped.

    Args:
        submissions: read only journals of these (shards of another identity have the same names).
    """

    def __init__(self, folder: Path, submissions: set[str] | None = None) -> None:
        self._folder = folder
        self.submissions = submissions
        self.offsets: dict[str, int] = {}
        self.partial: dict[tuple[str, int], Saved] = {}
        self.rates: Counter[int] = Counter()  # samples by second, over the last hour
        self.lives: dict[str, Activity] = {}  # by instance
        self.history: Counter[int] = Counter()  # samples by ten minutes, of the whole run
        self.first = self.last = self.last_claim = 0.0
        self.ends: list[float] = []  # when shards ended, since the last claim
        self.piloted: dict[str, list[str]] = {}  # by shard, the pilots whose blocks of it are saved

    def refresh(self, ended: Ended = lambda shard, generation, event: False) -> None:
        """Read what the journals hold beyond what was read before.

        Args:
            ended: called for every shard that was done or failed. Returns whether the caller has counted it as a whole:
                then its blocks are not kept apart in `partial`.
        """
        parser, lives = BlockParser(), list[Activity]()
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else []:
            if self.submissions is not None and path.name.partition("-")[0] not in self.submissions:
                continue
            data, self.offsets[path.name] = journal.complete_lines(path, self.offsets.get(path.name, 0))
            life = self.lives.setdefault(path.stem, Activity())
            if not data:
                continue
            lives.append(life)
            times = []
            for line in parser.add(data):
                if event := journal.parse(line):
                    try:
                        times.append(self._count(event, life, parser, ended))
                    except (KeyError, TypeError, ValueError, AttributeError):  # damaged: passed over, as a torn line is
                        continue
            if times:
                self._extend(life, min(times), max(times))
            if parser.bytes > BATCH_BYTES:
                self._count_blocks(parser, lives)
                parser, lives = BlockParser(), []
        self._count_blocks(parser, lives)
        self.ends = [t for t in self.ends if t > self.last_claim]
        oldest = self.last - 2 * WINDOW_S
        for second in [s for s in self.rates if s < oldest]:
            del self.rates[second]
        for life in self.lives.values():
            for minutes in life.minutes.values():
                for minute in [m for m in minutes if m * 60 < oldest]:
                    del minutes[minute]

    def _count(self, event: dict[str, Any], life: Activity, parser: BlockParser, ended: Ended) -> float:
        """Count one event that is no block; returns its time."""
        kind, t = event["event"], float(event.get("t", 0.0))
        if kind in (DONE, FAILED):
            at = (event["shard"], event.get("g", 0))
            self.ends.append(t)
            if ended(*at, event):
                parser.count_whole(*at)
        elif kind == "engine":
            life.deaths[f"{event.get('engine', 0)}: {event['died']}"] += 1
        elif kind == "ended" and event.get("how") == "failed":
            life.failures[str(event.get("reason", "unknown"))] += 1
        elif kind == "ended" and event.get("how") == "piloted":
            self.piloted.setdefault(event["shard"], []).append(event["pilot"])
        elif kind == "claim":
            life.begun = life.begun or t
            self.last_claim = max(self.last_claim, t)
        elif kind == "start":
            life.host, life.job = str(event.get("host", "")), str(event.get("job", ""))
            life.allocation = str(event.get("allocation", ""))
        elif kind == "stop":
            life.time, life.stopped = event.get("time"), True
        return t

    def _extend(self, life: Activity, first: float, last: float) -> None:
        """Extend the time from the first to the last event, of this life and of the run."""
        for seen in (self, life):
            if first < seen.first or not seen.first:
                seen.first = first
            if last > seen.last:
                seen.last = last

    def _count_blocks(self, parser: BlockParser, lives: list[Activity]) -> None:
        """Count the blocks that a parser has collected. lives: whose journals these are, in their order."""
        if not lives:
            return
        blocks, left = parser.parse()
        for owner, rows in blocks.journals():
            life, t, new = lives[owner], blocks.t[rows], blocks.new[rows]
            self._extend(life, float(t.min()), float(t.max()))
            life.samples += int(new.sum())
            if (saved := t[new > 0]).size:
                life.worked = float(saved[-1])
        recent = self.last - 2 * WINDOW_S
        for second, count in blocks.by_time(1, since=recent):
            self.rates[second] += count
        for span, count in blocks.by_time(HISTORY_S):
            self.history[span] += count
        for owner, engine, minute, count in blocks.by_engine(60, since=recent):
            minutes = lives[owner].minutes
            if (name := str(engine)) not in minutes:
                minutes[name] = Counter()
            minutes[name][minute] += count
        # The owner that takes a shard over records what it adopts, so only blocks of the highest epoch count: what a
        # superseded owner still saves beside it does not.
        for event in left:
            at, epoch = (event["shard"], event.get("g", 0)), event.get("e", -1)
            if at not in self.partial or self.partial[at].epoch < epoch:
                self.partial[at] = Saved(epoch)
            if self.partial[at].epoch == epoch:
                self.partial[at].add(event["start"], event["counts"])

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
        """All of it as JSON, for `restore`."""
        partial = [[*at, found.epoch, list(found.blocks.items())] for at, found in self.partial.items()]
        lives = {name: vars(life) for name, life in self.lives.items()}
        return {
            "offsets": self.offsets, "partial": partial, "rates": self.rates, "lives": lives,
            "first": self.first, "last": self.last, "history": self.history, "last_claim": self.last_claim,
            "ends": self.ends, "piloted": self.piloted,
        }  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        self.offsets, self.first, self.last = saved["offsets"], saved["first"], saved["last"]
        for shard, generation, epoch, blocks in saved["partial"]:
            self.partial[shard, generation] = Saved(epoch, dict(blocks))
        self.last_claim, self.ends, self.piloted = saved["last_claim"], saved["ends"], saved["piloted"]
        self.rates = Counter({int(second): n for second, n in saved["rates"].items()})
        self.history = Counter({int(bin): n for bin, n in saved["history"].items()})
        for name, life in saved["lives"].items():
            minutes = {e: Counter({int(m): n for m, n in c.items()}) for e, c in life.pop("minutes").items()}
            deaths, failures = Counter(life.pop("deaths")), Counter(life.pop("failures"))
            self.lives[name] = Activity(**life, deaths=deaths, failures=failures, minutes=minutes)
