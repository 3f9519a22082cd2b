"""What a map run has published, for readers: export, report, trainers. Resolved through markers, never by globbing
files.

    for shard in Published("runs/demo"):
        table = shard.table()
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base import object_store
from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.directory import Run
from hpc.run.ledger import DONE
from hpc.run.plan import Plan


@dataclass(frozen=True)
class PublishedShard:
    """A finished shard: its input, where its column file is (a path or a URL), its marker (rows, counts, sha256, ...),
    and the run directory.
    """

    shard: Shard
    location: str
    marker: dict[str, Any]
    run: Path

    @property
    def file(self) -> Path:
        """The column file, where it is in the run directory. UserError where it is on an object store."""
        if object_store.is_url(self.location):
            raise UserError(f"{self.location} is not a local file. Copy the column here, or read it with `table()`.")
        return Path(self.location)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """The rows, in the shard's order. UserError where the file is gone or damaged, or has not all these columns."""
        with object_store.fetched(self.location) as path:
            try:
                file = pq.ParquetFile(path)
                names = file.schema_arrow.names
                if not (absent := sorted(set(columns or ()) - set(names))):
                    return file.read(columns)
            except (OSError, pa.ArrowException) as error:
                gone = isinstance(error, FileNotFoundError)
                why = "is gone" if gone else f"cannot be read: {str(error).splitlines()[0]}"
                raise UserError(
                    f"{self.location}, which holds shard {self.shard.id}, {why}. Make it again: python -m hpc.rerun "
                    f"{self.run} --shards {self.shard.id} (python -m hpc.verify {self.run} looks at all of them)."
                ) from error
        has = f"{self.location} has no {', '.join(absent)} (it has {', '.join(names)})"
        raise UserError(f"{has}. Is its run a job of the right kind?")


class Published:
    """The finished shards of a run's newest identity, in the order of their ids. Plan and ledger are read when they are
    first needed.

    Raises:
        UserError: the path is not a run directory.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Run(run)
        self.submission = self.run.latest()
        self._ledger = self.run.ledger(self.submission.identity)

    @cached_property
    def _done(self) -> dict[str, int]:
        """The generation of each finished shard. Read once: shards that finish later are not seen."""
        return self._ledger.done(self.run.generations.opened())

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards of the plan, finished or not."""
        return sorted(Plan(self.run.plans, self.submission.plan).shards(), key=lambda s: s.id)

    @cached_property
    def _by_id(self) -> dict[str, Shard]:
        return {shard.id: shard for shard in self.shards}

    @property
    def column(self) -> str:
        return self.submission.column

    @property
    def identity(self) -> str:
        return self.submission.identity

    def missing(self) -> list[str]:
        """Ids of planned shards that are not finished."""
        return [s.id for s in self.shards if s.id not in self._done]

    def digest(self) -> str:
        """A hash (64 hex digits) of which shards are finished and in which generation."""
        done = "".join(f"{shard} {self._done[shard]}\n" for shard in sorted(self._by_id) if shard in self._done)
        return hashlib.sha256(done.encode("utf-8", "surrogateescape")).hexdigest()

    def __contains__(self, shard_id: str) -> bool:
        """Whether a shard is finished; its marker is not read."""
        return shard_id in self._by_id and shard_id in self._done

    def generation(self, shard_id: str) -> int:
        """The generation in which a shard was finished; its marker is not read. KeyError where it is not finished."""
        return self._done[shard_id]

    def marker(self, shard_id: str) -> dict[str, Any]:
        """The marker of a finished shard. UserError where it is damaged, KeyError where the shard is not finished."""
        marker = self._ledger.read(shard_id, f"g{self._done[shard_id]}.done")
        if not isinstance(marker.get("file"), str):
            raise UserError(
                f"{self.run.path}: the marker of shard {shard_id} is damaged. Make it again: python -m hpc.rerun "
                f"{self.run.path} --shards {shard_id}"
            )
        return marker

    def find(self, shard_id: str) -> PublishedShard | None:
        """The shard with this id; None where it is not finished."""
        if shard_id not in self:
            return None
        marker = self.marker(shard_id)
        return PublishedShard(self._by_id[shard_id], self.run.locate(marker["file"]), marker, self.run.path)

    def __iter__(self) -> Iterator[PublishedShard]:
        for shard in self.shards:
            found = self.find(shard.id)
            if found is not None:
                yield found


def some_file(run: Run) -> str | None:
    """Where the file of any finished shard lies; None where no shard is finished. Lists only the buckets up to it."""
    submission = run.latest()
    ledger, opened = run.ledger(submission.identity), run.generations.opened()
    for shard in Plan(run.plans, submission.plan).shards():
        state = ledger.state(shard.id, opened)
        if state.status == DONE and (file := ledger.read(shard.id, f"g{state.generation}.done").get("file")):
            return run.locate(file)
    return None
