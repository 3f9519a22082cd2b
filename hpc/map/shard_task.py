"""One claimed shard on its way through an engine: its finished samples, and when they are saved."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hpc.base import object_store
from hpc.base.errors import storage_full
from hpc.map.compare import Measure
from hpc.operator import OK, SKIPPED, Damage, Row, Shard
from hpc.run import column as columns
from hpc.run.directory import Run
from hpc.run.segments import Segments, Writer

log = logging.getLogger("engine")

ASIDE_BYTES = 1 << 26  # finished samples that wait for the next save; more are saved at once

Saved = tuple[int, Counter[str]]  # a block's first sample, newly saved samples by status


@dataclass(eq=False)
class ShardTask:
    """One claimed shard on its way through this engine.

    A finished row waits until its block is complete. A complete block is laid aside, and all that are laid aside are
    saved `save_s` seconds after the last save. In later epochs the first save comes at once, so that a shard that kills
    its engines makes progress all the same.
    """

    shard: Shard
    generation: int
    epoch: int
    suspects: set[int]
    quarantine: set[int]
    apart: bool  # reading it may have killed an engine before: nothing else happens while it is read
    segment: int
    save_s: float
    segments: Segments
    schema: pa.Schema
    only: list[int] | None = None  # blocks that are read, of a pilot
    saved: dict[int, str] = field(default_factory=dict)  # index -> key of samples that were adopted or laid aside
    rows: dict[int, Row] = field(default_factory=dict)  # finished, their blocks are not
    held: int = 0  # samples that the operator holds
    finished_in: Counter[int] = field(default_factory=Counter)  # samples finished or adopted, by block
    seen: int = 0  # samples that the reader has delivered
    total: int | None = None  # known when the reader has come to the end
    damage: Damage | None = None
    noted: dict[str, Any] = field(default_factory=dict)  # for the marker, by the operator, when all is read
    laid_aside: set[int] = field(default_factory=set)  # complete blocks that were laid aside
    transient: Counter[str] = field(default_factory=Counter)  # samples whose last try failed transiently, by reason
    error: BaseException | None = None
    changed: bool = False  # the input has changed since samples of it were saved
    delivered: set[int] | None = None  # all samples of a pilot's blocks, known when the reader has come to their end
    unreported: Measure = field(default_factory=Measure)  # of samples laid aside since a measure was last reported

    def __post_init__(self) -> None:
        self._read: set[int] = set()  # samples of a pilot's blocks
        self._aside: list[tuple[int, pa.Table]] = []  # first sample, rows
        self._bytes = 0  # of these
        self._new: defaultdict[int, Counter[str]] = defaultdict(Counter)  # of these, by status: by block
        self._next_save = time.monotonic() + self.save_s if self.epoch == 0 else 0.0
        self._writer: Writer

    def name(self) -> dict[str, Any]:
        return {"shard": self.shard.id, "generation": self.generation, "epoch": self.epoch}

    def load_saved(self, good: Iterable[tuple[int, pa.Table]]) -> list[Saved]:
        """Take over what earlier owners saved; for samples that they did not save, the `good` rows of the generation
        before. Returns what was taken over, by block.
        """
        rows, found = self.segments.read(self.schema, self.epoch)
        self._writer = Writer(self.segments.path(self.epoch), found)
        more = [*self.segments.of_earlier_version(self.schema), *good]
        taken = [part for first, table in more for part in rows.add(first, table)]
        tables = rows.tables()
        if tables:  # records in our own file what we took over: the publisher has to see the same rows
            self._writer.append(taken, sync=bool(taken))
        blocks: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for start, table in tables.items():
            both = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
            for index, (key, status) in enumerate(both, start):
                self.saved[index] = key
                self.finished_in[index // self.segment] += 1
                blocks[index // self.segment][status] += 1
        return self._named(blocks)

    def count_delivered(self, index: int) -> None:
        """The reader has delivered this sample."""
        self.seen = index + 1
        if self.only is not None:
            self._read.add(index)

    def end(self) -> bool:
        """The reader has come to the shard's end. False where more samples were saved than the shard has: then it was
        another input.
        """
        if self.only is not None:
            self.delivered = self._read
            return True
        self.total = self.seen
        if any(index >= self.total for index in self.saved):
            return False
        for block in range(-(-self.total // self.segment)):
            self.complete(block)
        return True

    def add(self, row: Row) -> None:
        """Take a finished row; when its block is complete, lay that aside."""
        self.rows[row.index] = row
        if row.transient:
            self.transient[row.reason] += 1
        block = row.index // self.segment
        self.finished_in[block] += 1
        if self.finished_in[block] >= self.segment or self.total is not None:
            self.complete(block)

    def complete(self, block: int) -> None:
        """Lay a block aside if all of its samples are finished. One with transient failures is not: the next epoch
        tries these samples again.
        """
        first, last = block * self.segment, (block + 1) * self.segment
        if self.total is not None:
            last = min(last, self.total)
        indices = [i for i in range(first, last) if i not in self.saved]
        if block in self.laid_aside or not all(i in self.rows for i in indices):
            return
        if any(self.rows[i].transient for i in indices):
            return
        self._lay_aside(indices)
        self.laid_aside.add(block)

    def due(self) -> bool:
        """Whether it is time to save what was laid aside."""
        return bool(self._aside) and (self._bytes > ASIDE_BYTES or time.monotonic() >= self._next_save)

    def save(self, *, all_finished: bool = False, sync: bool = True) -> list[Saved]:
        """Save what was laid aside.

        Args:
            all_finished: with it what is finished of incomplete blocks, but for transient failures.
            sync: force it to storage; not needed where the column file follows.

        Returns:
            What is new on storage, block by block.
        """
        if all_finished:
            self._lay_aside([i for i in sorted(self.rows) if not self.rows[i].transient])
        if self._aside:
            self._writer.append(_joined(self._aside), sync=sync)
        new = self._named(self._new)
        self._aside, self._bytes = [], 0
        self._new.clear()
        self._next_save = time.monotonic() + self.save_s
        return new

    def discard(self) -> None:
        """The input has changed: nothing that was saved of it counts."""
        self.changed = True
        self._writer.void()

    def close(self) -> None:
        self._writer.close()

    def finished(self) -> bool:
        """Whether every sample has its row, as far as the reader has come to the end."""
        if self.delivered is not None:
            return all(index in self.saved or index in self.rows for index in self.delivered)
        if self.total is None:
            return False
        return len(self.saved) + len(self.rows) >= self.total

    def _lay_aside(self, indices: list[int]) -> None:
        rows = [self.rows.pop(i) for i in indices]
        for run in _runs(rows):
            table = columns.to_table(run, self.schema)
            self._aside.append((run[0].index, table))
            self.unreported = self.unreported.plus(Measure.of(table))
            self._bytes += table.nbytes
        for row in rows:
            self.saved[row.index] = row.key
            self._new[row.index // self.segment][row.status] += 1

    def _named(self, blocks: dict[int, Counter[str]]) -> list[Saved]:
        return [(block * self.segment, counts) for block, counts in sorted(blocks.items())]


def good_before(run: Run, identity: str, task: ShardTask) -> list[tuple[int, pa.Table]]:
    """For a rerun of bad samples alone: the good ones of the generation before, published or not."""
    before = task.generation - 1
    marker = run.ledger(identity).read(task.shard.id, f"g{before}.done")
    try:
        if marker:
            with object_store.fetched(run.locate(marker["file"])) as path:
                return list(good_of([(0, columns.read(path))]))
        segments = Segments(run.segments(identity, task.shard.id, before))
        rows, _ = segments.read(task.schema)
        for first, table in segments.of_earlier_version(task.schema):
            rows.add(first, table)
        return list(good_of(rows.tables().items()))
    except (OSError, pa.ArrowException) as error:
        if storage_full(error):
            raise
        log.warning("%s: what it had cannot be read, all of it is done again: %s", task.shard.id, error)
        return []


def good_of(tables: Iterable[tuple[int, pa.Table]]) -> Iterator[tuple[int, pa.Table]]:
    """What was done well (ok and skipped rows), as tables by their first sample, as given."""
    for first, table in tables:
        statuses = table["status"].to_pylist()
        start = 0
        for is_good, run in itertools.groupby(statuses, lambda status: status in (OK, SKIPPED)):
            length = len(list(run))
            if is_good:
                yield first + start, table.slice(start, length)
            start += length


def _joined(tables: list[tuple[int, pa.Table]]) -> list[tuple[int, pa.Table]]:
    """The same rows in order, in as few tables as their gaps allow."""
    joined: list[tuple[int, list[pa.Table]]] = []
    end = -1
    for first, table in sorted(tables, key=lambda found: found[0]):
        if first != end:
            joined.append((first, []))
        joined[-1][1].append(table)
        end = first + table.num_rows
    return [(first, pa.concat_tables(parts)) for first, parts in joined]


def _runs(rows: list[Row]) -> Iterator[list[Row]]:
    """Maximal runs of consecutive indices (adopted samples may lie between)."""
    run: list[Row] = []
    for row in rows:
        if run and row.index != run[-1].index + 1:
            yield run
            run = []
        run.append(row)
    if run:
        yield run
