"""Counts a run's shards and samples. Shards that are done or failed (settled) are counted once, so that the status of a
million shards stays quick.

Ledger names tell the states, journals the counts; markers are opened only where a journal lacks its line. What was
counted is kept in `<run>/tally/<identity>.arrow`: a cache, made again whenever it does not fit. A bucket of the ledger
is listed again only when its directory has changed.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hpc.base import atomic
from hpc.base.no_collection import without_collection
from hpc.operator import FAILED as SAMPLE_FAILED
from hpc.run.allocations import Allocations
from hpc.run.directory import Run, Submission
from hpc.run.journal_reader import JournalReader
from hpc.run.ledger import DONE, FAILED, Ledger, State, bucket_of, settled_and_claimed
from hpc.run.lost import LostFiles
from hpc.run.plan import Plan
from hpc.slurm.accounting import Accounting

FORMAT = 7  # of the cache
WORTHWHILE = 5000  # shards from which on the cache is written
_RACY_S = 2.0  # a directory that changed just before it was listed may change again with the same time stamp


@dataclass
class Reason:
    """How often a reason occurs, the first shard (by name) that has it, and where to look (a log or a detail)."""

    count: int = 0
    example: str = ""
    where: str = ""
    empty: int = 0  # of these, shards that gave no sample at all

    def add(self, shard: str, where: str, empty: bool = False) -> None:
        self.count += 1
        self.empty += empty
        if not self.example or shard < self.example:
            self.example, self.where = shard, where


@dataclass
class Settled:
    """Sums over the shards that are done or failed."""

    shards: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, Reason] = field(default_factory=dict)
    failures: dict[str, Reason] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0  # of their inputs
    expected: int = 0
    unknown: int = 0  # shards without an expected count

    def count_done(self, shard: str, done: dict[str, Any]) -> None:
        samples, reasons = self.samples, self.reasons
        for status, count in done.get("counts", {}).items():  # quicker than Counter.update, a million times
            samples[status] += count
        for reason, count in done.get("reasons", {}).items():
            reasons[reason] += count
        self.rows += done.get("rows", 0)
        if done.get("damage"):
            self.damaged.setdefault(done["damage"], Reason()).add(
                shard, done.get("detail") or "", empty=not done.get("rows", 0)
            )

    def count_failed(self, shard: str, failed: dict[str, Any], expected: int) -> None:
        """A failed shard publishes no row: as far as their number is known, its samples are failed with it."""
        self.samples[SAMPLE_FAILED] += expected
        where = failed.get("log") or failed.get("host") or ""
        self.failures.setdefault(failed.get("reason") or "unknown", Reason()).add(shard, where)


@dataclass
class Totals:
    """All counts of a run at one moment."""

    settled: Settled
    total: int  # shards
    claimed: int
    samples: Counter[str]  # of unfinished shards too
    left: int  # samples still to do; where a shard's count is not known, the mean of the finished ones stands for it
    unknown: int = 0  # unfinished shards whose count is not known
    kept: int = 0  # samples in published files and in saved blocks

    @property
    def unclaimed(self) -> int:
        """Shards that nobody has taken yet."""
        return self.total - self.settled.shards[DONE] - self.settled.shards[FAILED] - self.claimed


class Tally:
    """Counts one run, again and again. keep: whether to write the cache."""

    def __init__(self, run: Run, latest: Submission, *, keep: bool = True) -> None:
        self._run, self.latest, self._keep = run, latest, keep
        self._ledger = run.ledger(latest.identity)
        self._file = run.path / "tally" / f"{latest.identity}.arrow"
        self._plan = Plan(run.plans, latest.plan).table(["id", "bytes", "expected"])
        self.lost, self.accounting = LostFiles(run, latest), Accounting()
        self.allocations = Allocations(run.allocations)
        self._forget()
        self._load()

    def _journals_of(self) -> set[str]:
        """The submissions whose slots work for this identity; each launch adds one."""
        return {s.uuid for s in self._run.submissions() if s.identity == self.latest.identity}

    def _forget(self) -> None:
        self.reader = JournalReader(self._run.journals, self._journals_of())
        self.settled = Settled()
        self._times: dict[str, int] = {}  # bucket -> its directory's mtime when it was listed
        self._done: dict[str, pa.Array | set[str]] = {}  # bucket -> ids that have been counted
        self._claimed: dict[str, list[str]] = {}  # bucket -> ids
        self._failed: set[str] = set()
        self.exited: dict[str, dict[str, Any]] = {}  # see hpc.base.heartbeat.newest
        self._generations = self._run.generations.count()

    def fits(self, latest: Submission) -> bool:
        return (latest.plan, latest.identity) == (self.latest.plan, self.latest.identity)

    def count(self) -> Totals:
        with without_collection():
            return self._count()

    def _count(self) -> Totals:
        if self._generations != self._run.generations.count():
            self._forget()  # shards were reopened: what was settled is not
        reopened = self._run.generations.by_bucket()
        found: dict[str, State] = {}
        changed = False
        for bucket in self._ledger.buckets():
            changed |= self._list(bucket, reopened.get(bucket), found)
        if self._failed.intersection(shard for shard, state in found.items() if state.status == DONE):
            self._forget()  # a shard was done after all: its failure must not count
            return self._count()
        self._count_settled(found)
        if changed and self._keep and len(self._plan) >= WORTHWHILE:
            self._save()
        return self._totals()

    def _list(self, bucket: str, reopened: Mapping[str, int] | None, found: dict[str, State]) -> bool:
        """List one bucket if it has changed; adds shards that were not settled before to `found`."""
        try:
            now, changed_at = time.time(), os.stat(self._ledger.root / bucket).st_mtime_ns
        except FileNotFoundError:
            return False
        if self._times.get(bucket) == changed_at:
            return False
        known = self._done.get(bucket, set())
        if isinstance(known, pa.Array):
            known = set(known.to_pylist())
        names = self._ledger.names(bucket)
        settled, claimed = settled_and_claimed(names, reopened)
        for shard, state in settled.items():
            if shard not in known or (shard in self._failed and state.status == DONE):
                found[shard] = state
                known.add(shard)
        self._done[bucket], self._claimed[bucket] = pa.array(list(known), pa.string()), claimed
        # Our clock against the file server's: where they disagree the bucket is only listed once more than needed.
        self._times[bucket] = changed_at if now - changed_at / 1e9 > _RACY_S else -1
        return True

    def _count_settled(self, found: dict[str, State]) -> None:
        """Count shards that are newly settled, from their events in the journals. Those that are no longer in the plan
        are not counted.
        """
        import pyarrow.compute as pc  # takes 0.1 s, which a launch of a new run does not need

        ids = pa.array(list(found), pa.string())
        rows = self._plan.filter(pc.is_in(self._plan["id"], ids)) if found else self._plan.slice(0, 0)
        self.settled.bytes += pc.sum(rows["bytes"]).as_py() or 0
        self.settled.expected += pc.sum(rows["expected"]).as_py() or 0
        self.settled.unknown += rows["expected"].null_count
        for shard in ids.filter(pc.invert(pc.is_in(ids, rows["id"].combine_chunks()))).to_pylist():
            del found[shard]

        def ended(shard: str, generation: int, event: dict[str, Any]) -> bool:
            state = found.get(shard)
            if (
                state is None
                or (state.generation, state.status) != (generation, event["event"])
                or not _is_countable(event)
            ):
                return False
            self._add(shard, state, event, expected)
            del found[shard]
            return True

        self.reader.submissions = self._journals_of()
        failed = pa.array([shard for shard, state in found.items() if state.status == FAILED], pa.string())
        theirs = rows.filter(pc.is_in(rows["id"], failed))
        expected = dict(zip(theirs["id"].to_pylist(), theirs["expected"].to_pylist(), strict=True))
        self.reader.refresh(ended)
        for shard, state in found.items():  # the writer died between the marker and its line in the journal
            self._add(shard, state, _marker(self._ledger, shard, state), expected)

    def _add(self, shard: str, state: State, event: dict[str, Any], expected: dict[str, int | None]) -> None:
        self.settled.shards[state.status] += 1
        if state.status == DONE:
            self.settled.count_done(shard, event)
        else:
            self.settled.count_failed(shard, event, expected.get(shard) or 0)
            self._failed.add(shard)

    def _totals(self) -> Totals:
        import pyarrow.compute as pc  # takes 0.1 s, which a launch of a new run does not need

        settled = self.settled
        claimed = pa.array([shard for found in self._claimed.values() for shard in found], pa.string())
        samples = Counter(settled.samples)
        begun = self._begun()
        rows = self._plan.filter(pc.is_in(self._plan["id"], pa.array(list(begun), pa.string())))
        counted = list(zip(rows["id"].to_pylist(), rows["expected"].to_pylist(), strict=True))
        for shard, _ in counted:  # those that the plan has dropped are not counted
            samples.update(begun[shard])
        taken = sum(min(begun[shard].total(), e) for shard, e in counted if e is not None)
        expected_left = (pc.sum(self._plan["expected"]).as_py() or 0) - settled.expected - taken
        unknown_left = self._plan["expected"].null_count - settled.unknown
        mean = settled.rows / settled.shards[DONE] if settled.shards[DONE] else 0.0
        guessed = sum(min(begun[shard].total(), mean) for shard, e in counted if e is None)
        return Totals(
            settled,
            len(self._plan),
            pc.sum(pc.is_in(claimed, self._plan["id"].combine_chunks())).as_py() or 0 if len(claimed) else 0,
            samples,
            max(0, expected_left) + round(max(0.0, mean * unknown_left - guessed)),
            unknown_left,
            settled.rows + sum(begun[shard].total() for shard, _ in counted),
        )

    def _begun(self) -> dict[str, Counter[str]]:
        """Saved samples by status of each unfinished shard, in its newest generation. Forgets blocks of all others."""
        newest = self._run.generations.opened()
        for shard, generation in self.reader.partial:
            newest[shard] = max(generation, newest.get(shard, 0))
        for shard, generation in list(self.reader.partial):
            if generation < newest[shard] or self._is_settled(shard):
                del self.reader.partial[shard, generation]
        return {shard: _without_overlap(saved.blocks) for (shard, _), saved in self.reader.partial.items()}

    def _is_settled(self, shard: str) -> bool:
        """Whether a shard was counted as done or failed. A superseded slot may save blocks of it even after that."""
        bucket = bucket_of(shard)
        known = self._done.get(bucket, set())
        if isinstance(known, pa.Array):
            known = self._done[bucket] = set(known.to_pylist())
        return shard in known

    # --- the cache --------------------------------------------------------------------------

    def _key(self) -> list[Any]:
        return [FORMAT, self.latest.plan, self.latest.identity, self._generations]

    def _save(self) -> None:
        """Best effort: a reader without the right to write counts again."""
        names = sorted(self._done)
        sets = [self._done[name] for name in names]
        arrays = [a if isinstance(a, pa.Array) else pa.array(sorted(a), pa.string()) for a in sets]
        groups = {k: {r: vars(found) for r, found in getattr(self.settled, k).items()} for k in ("damaged", "failures")}
        settled = {**vars(self.settled), **groups}
        state = {
            "key": self._key(), "reader": self.reader.dump(), "settled": settled, "times": self._times,
            "claimed": self._claimed, "exited": self.exited, "failed": sorted(self._failed),
            "buckets": [[name, len(ids)] for name, ids in zip(names, arrays, strict=True)],
        }  # fmt: skip
        table = pa.table({"id": pa.chunked_array(arrays, pa.string())})
        table = table.replace_schema_metadata({"state": json.dumps(state)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        try:
            self._file.parent.mkdir(exist_ok=True)
            atomic.replace(self._file, sink.getvalue().to_pybytes())
        except OSError:
            return

    def _load(self) -> None:
        try:
            with pa.memory_map(str(self._file)) as file:
                table = pa.ipc.open_file(file).read_all()
            state = json.loads(table.schema.metadata[b"state"])
            if state["key"] != self._key():
                return
            settled = state["settled"]
            for group in ("damaged", "failures"):
                settled[group] = {reason: Reason(**found) for reason, found in settled[group].items()}
            for counter in ("shards", "samples", "reasons"):
                settled[counter] = Counter(settled[counter])
            self.reader.restore(state["reader"])
            self.settled = Settled(**settled)
            self._times, self._claimed, self._failed = state["times"], state["claimed"], set(state["failed"])
            self.exited = state["exited"]
            ids, start = table["id"].combine_chunks(), 0
            for bucket, count in state["buckets"]:
                self._done[bucket] = ids.slice(start, count)
                start += count
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            self._forget()  # none, or not ours


def _without_overlap(blocks: dict[int, dict[str, int]]) -> Counter[str]:
    """Samples by status in blocks (given by their first sample), none counted twice: blocks overlap where `map.segment`
    was changed between two owners.
    """
    counts: Counter[str] = Counter()
    end = 0
    for start, saved in sorted(blocks.items()):
        if start >= end:
            counts.update(saved)
            end = start + sum(saved.values())
    return counts


_TEXT = (str, type(None))


def _is_countable(event: dict[str, Any]) -> bool:
    """Whether an event has the types that counting needs; where it is damaged, the marker is read instead."""
    get = event.get
    try:
        sum(get("counts", {}).values(), sum(get("reasons", {}).values(), get("rows", 0)))
    except (TypeError, AttributeError):
        return False
    return type(get("reason")) in _TEXT and type(get("damage")) in _TEXT and type(get("detail")) in _TEXT


def _marker(ledger: Ledger, shard_id: str, state: State) -> dict[str, Any]:
    """A marker in the form of the event that the journal should hold; {} for a damaged one, which hpc.verify tells."""
    marker = ledger.read(shard_id, f"g{state.generation}.{state.status}")
    damage = marker.get("damage")
    damage = damage if isinstance(damage, dict) else {}
    found = {**marker, "damage": damage.get("reason"), "detail": damage.get("detail")}
    return found if _is_countable(found) else {}
