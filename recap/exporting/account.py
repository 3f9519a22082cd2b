"""What became of the samples of an export, counted while it is made: for its card, and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hpc.run.published import PublishedShard
from recap.downloaded import Downloads
from recap.engine.provenance import writers
from recap.exporting.statistics import Statistics


@dataclass
class Account:
    """each: rows that were written, of each shard. outcomes, reasons: of all samples of the shards. by: what wrote the
    captions, in words.

    filled: columns that are not null in all rows. left_out: members of tars, by reason. without_digests: columns that
    could not be compared with the images.
    """

    each: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    by: dict[str, None] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    without_digests: set[str] = field(default_factory=set)
    downloads: Downloads = field(default_factory=Downloads)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def rows(self) -> int:
        return sum(self.each)

    def add(self, captioner: dict[str, Any], shard: PublishedShard, table: pa.Table) -> None:
        """Count a shard, and its rows that are written."""
        self.each.append(len(table))
        self.outcomes.update(shard.marker["counts"])
        self.reasons.update(shard.marker["reasons"])
        self.by |= dict.fromkeys(writers(captioner, [shard.marker]))
        self.filled |= {name for name in table.column_names if table[name].null_count < len(table)}
        self.statistics.add(shard.shard.id, table)

    def merge(self, other: Account) -> None:
        """Count what another has counted of shards that follow."""
        self.each += other.each
        for mine, more in ((self.outcomes, other.outcomes), (self.reasons, other.reasons)):
            mine.update(more)
        self.left_out.update(other.left_out)
        self.by |= other.by
        self.filled |= other.filled
        self.without_digests |= other.without_digests
        self.downloads.add(other.downloads)
        self.statistics.merge(other.statistics)

    def as_record(self) -> dict[str, Any]:
        """As JSON."""
        sets = {name: sorted(getattr(self, name)) for name in ("filled", "without_digests")}
        found = {name: getattr(self, name) for name in ("each", "outcomes", "reasons", "left_out")}
        return {**found, **sets, "by": [*self.by], "downloads": vars(self.downloads),
                "statistics": vars(self.statistics)}  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Account:
        """Of what `as_record` made."""
        return cls(
            record["each"],
            Counter(record["outcomes"]),
            Counter(record["reasons"]),
            dict.fromkeys(record["by"]),
            set(record["filled"]),
            Counter(record["left_out"]),
            set(record["without_digests"]),
            Downloads(**record["downloads"]),
            Statistics.of(record["statistics"]),
        )
