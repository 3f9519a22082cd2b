"""One claimed shard on its way through an engine: its finished samples, saved block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpc import column as columns
from hpc.operator import Damage, Row, Shard

Saved = tuple[int, Counter[str]]  # first sample, samples by status


@dataclass(eq=False)
class Task:
    """One claimed shard on its way through this engine."""

    shard: Shard
    generation: int
    epoch: int
    suspects: set[int]
    quarantine: set[int]
    apart: bool  # nothing else happens in the engine while it is read: reading may have killed one before
    segment: int
    folder: Path
    schema: pa.Schema
    saved: dict[int, str] = field(default_factory=dict)  # index -> key of samples in adopted segments
    rows: dict[int, Row] = field(default_factory=dict)  # finished, not yet saved
    held: int = 0  # samples that the operator holds
    finished_in: Counter[int] = field(default_factory=Counter)  # samples finished or adopted, by block
    seen: int = 0  # samples that the reader has delivered
    total: int | None = None  # known when the reader has come to the end
    damage: Damage | None = None
    written: set[int] = field(default_factory=set)  # blocks that need nothing more
    transient: Counter[str] = field(default_factory=Counter)
    error: BaseException | None = None

    def name(self) -> dict[str, Any]:
        return {"shard": self.shard.id, "generation": self.generation, "epoch": self.epoch}

    def adopt(self) -> Iterator[Saved]:
        """Take over the segments that earlier owners saved."""
        for start, table in columns.read_segments(self.folder, self.schema).items():
            for index, key in enumerate(table["key"].to_pylist(), start):
                self.saved[index] = key
                self.finished_in[index // self.segment] += 1
            yield start, Counter(table["status"].to_pylist())

    def add(self, row: Row) -> list[Saved]:
        """Take a finished row; when its block is complete, save it."""
        self.rows[row.index] = row
        if row.transient:
            self.transient[row.reason] += 1
        block = row.index // self.segment
        self.finished_in[block] += 1
        if self.finished_in[block] < self.segment and self.total is None:
            return []
        return self.save(block)

    def save(self, block: int) -> list[Saved]:
        """Save a block if all of its samples are finished."""
        first, last = block * self.segment, (block + 1) * self.segment
        if self.total is not None:
            last = min(last, self.total)
        indices = [i for i in range(first, last) if i not in self.saved]
        if block in self.written or not all(i in self.rows for i in indices):
            return []
        rows = [self.rows[i] for i in indices]
        if any(r.transient for r in rows):
            return []  # not saved, so that the next epoch tries these samples again
        runs = list(_runs(rows))
        for run in runs:
            columns.write_segment(self.folder, run[0].index, columns.to_table(run, self.schema))
        for row in rows:
            self.saved[row.index] = row.key
            del self.rows[row.index]
        self.written.add(block)
        return [(run[0].index, Counter(r.status for r in run)) for run in runs]

    def save_all_but_transient(self) -> list[Saved]:
        """At the end of a shard that fails for some samples: what is good need not be done again."""
        rows = [self.rows[i] for i in sorted(self.rows) if not self.rows[i].transient]
        runs = list(_runs(rows))
        for run in runs:
            columns.write_segment(self.folder, run[0].index, columns.to_table(run, self.schema))
        return [(run[0].index, Counter(r.status for r in run)) for run in runs]

    def finished(self) -> bool:
        if self.total is None:
            return False
        return len(self.saved) + len(self.rows) >= self.total


def _runs(rows: list[Row]) -> Iterator[list[Row]]:
    """Maximal runs of consecutive indices (adopted segments may lie between)."""
    run: list[Row] = []
    for row in rows:
        if run and row.index != run[-1].index + 1:
            yield run
            run = []
        run.append(row)
    if run:
        yield run
