"""Counts of an export's samples, made while it is written: for its card, and for people."""

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
    """Counts of an export.

    each: rows that were written, one entry a shard.
    outcomes, reasons: of all samples of the shards.
    by: the models that wrote the captions, in words; keys of a dict, to keep their order.
    filled: columns that are not null in all rows.
    left_out: members of tars that were not copied, by reason.
    without_digests: columns without image digests, which could not be compared with the images.
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
        """Count a shard. captioner: the model's settings. table: the rows that are written."""
        self.each.append(len(table))
        self.outcomes.update(shard.marker["counts"])
        self.reasons.update(shard.marker["reasons"])
        self.by |= dict.fromkeys(writers(captioner, [shard.marker]))
        self.filled |= {name for name in table.column_names if table[name].null_count < len(table)}
        self.statistics.add(shard.shard.id, table)

    def merge(self, other: Account) -> None:
        """Add the counts of the shards that follow."""
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
        """All counts as a JSON object."""
        sets = {name: sorted(getattr(self, name)) for name in ("filled", "without_digests")}
        found = {name: getattr(self, name) for name in ("each", "outcomes", "reasons", "left_out")}
        return {**found, **sets, "by": [*self.by], "downloads": vars(self.downloads),
                "statistics": vars(self.statistics)}  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Account:
        """The counts of an object made by `as_record`."""
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
