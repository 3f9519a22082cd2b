"""What a map run has published, for readers: export, report, trainers. Resolved through markers, never by globbing files.

    for shard in Published("runs/demo"):
        table = pyarrow.parquet.read_table(shard.file)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.ledger import DONE
from hpc.operator import Shard
from hpc.plan import Plan
from hpc.rundir import Run


@dataclass(frozen=True)
class PublishedShard:
    """A finished shard: its input, its column file, and its marker (rows, counts, sha256, seconds, by, damage)."""

    shard: Shard
    file: Path
    marker: dict[str, Any]


class Published:
    """The finished shards of a run's newest identity, in the order of their ids.

    Raises:
        UserError: the path is not a run directory.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Run(run)
        self.submission = self.run.latest()
        self._ledger = self.run.ledger(self.submission.identity)
        self._states = self._ledger.survey(self.run.reopened())
        self.shards = sorted(Plan(self.run.plans, self.submission.plan).shards(), key=lambda s: s.id)

    @property
    def column(self) -> str:
        return self.submission.column

    @property
    def identity(self) -> str:
        return self.submission.identity

    def missing(self) -> list[str]:
        """Ids of planned shards that are not finished."""
        return [s.id for s in self.shards if s.id not in self._states or self._states[s.id].status != DONE]

    def __iter__(self) -> Iterator[PublishedShard]:
        for shard in self.shards:
            state = self._states.get(shard.id)
            if state is None or state.status != DONE:
                continue
            marker = self._ledger.read(shard.id, f"g{state.generation}.done")
            yield PublishedShard(shard, self.run.path / marker["file"], marker)
