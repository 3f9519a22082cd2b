"""What became of the samples of an export, counted while it is made: for its card, and for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hpc.run.published import PublishedShard
from recap.downloaded import Downloads
from recap.engine.provenance import writers
from recap.exporting.statistics import Statistics


@dataclass
class Account:
    """rows: that were written. outcomes, reasons: of all samples of the shards. by: what wrote the captions, in words.

    filled: columns that are not null in all rows.
    """

    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    by: dict[str, None] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    downloads: Downloads = field(default_factory=Downloads)
    statistics: Statistics = field(default_factory=Statistics)

    def add(self, captioner: dict[str, Any], shard: PublishedShard, table: pa.Table) -> None:
        """Count a shard, and its rows that are written."""
        self.rows += len(table)
        self.outcomes.update(shard.marker["counts"])
        self.reasons.update(shard.marker["reasons"])
        self.by |= dict.fromkeys(writers(captioner, [shard.marker]))
        self.filled |= {name for name in table.column_names if table[name].null_count < len(table)}
        self.statistics.add(shard.shard.id, table)
