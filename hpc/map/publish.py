"""From finished segments to a published column file and its marker, in an order that any crash leaves mendable.

    write beside the target → fsync → read back and verify → link (no replace) → marker (link, no replace) → journal
    → clean up

A crash before the link leaves a temporary that nobody reads; between link and marker, the successor finds the file,
verifies it and adopts it. Only the owner of the highest epoch publishes, and if two try all the same, link() lets
one win.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpc.base import atomic, object_store
from hpc.base.errors import ShardError
from hpc.operator import FAILED, LOST, Shard
from hpc.run import column as columns
from hpc.run.directory import Run
from hpc.run.ledger import DONE, Claim, Ledger
from hpc.run.segments import Rows, Segments


@dataclass(frozen=True)
class Publisher:
    """Publishes the shards of one identity."""

    run: Run
    ledger: Ledger
    column: str
    identity: str
    schema: pa.Schema
    max_failed: float
    output: str | None  # object store, see hpc.base.object_store
    owner: dict[str, Any]  # who publishes, for the marker: instance, host, job, code
    made_by: dict[str, Any] = field(default_factory=dict)  # what wrote the column, see hpc.operator

    def publish(
        self,
        claim: Claim,
        rows: int,
        damage: dict[str, str] | None,
        started: float,
        noted: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Publish a shard whose samples are all in segments.

        Args:
            rows: samples that the shard has; the segments must hold exactly these.
            damage: structural damage of the input ({"reason", "detail"}), if any.
            started: time.time() of the claim here, for the marker's seconds.
            noted: what the operator noted of the input, for the marker.

        Returns:
            The marker, or None if another owner published or now owns the shard.

        Raises:
            ShardError: what the segments hold must not count as done.
            OSError: the file system failed (no space, read-only); nothing half-written counts.
        """
        segments = Segments(self.run.segments(self.identity, claim.shard.id, claim.generation))
        state = self.ledger.state(claim.shard.id)
        if (state.generation, state.epoch) != (claim.generation, claim.epoch) or state.terminal:
            if state.generation == claim.generation and state.status == DONE:
                segments.remove()  # what this owner saved after its successor had cleaned up
            return None
        target = self.run.column_file(self.column, self.identity, claim.shard.id, claim.generation)
        saved, _ = segments.read(self.schema, claim.epoch)
        if not saved.complete(rows):
            raise ShardError("output: saved samples are missing", f"{claim.stem}: not all of its {rows} are there")
        content, location = self._publish_file(saved, target, rows, claim.shard)
        marker = {
            "shard": claim.shard.id,
            "file": location,
            **asdict(content),
            "damage": damage,
            "input": {"uri": claim.shard.uri, "bytes": claim.shard.bytes, "etag": claim.shard.etag},
            "generation": claim.generation,
            "epoch": claim.epoch,
            "seconds": round(time.time() - started, 3),
            "by": self.owner,
            "made_by": self.made_by,
            "noted": noted or {},
        }
        first = self.ledger.mark(claim, DONE, marker)
        segments.remove()
        return marker if first else None

    def _publish_file(self, saved: Rows, target: Path, rows: int, shard: Shard) -> tuple[columns.Content, str]:
        """Make sure that a verified file is at `target`: ours, or one that an earlier owner published before it died.

        Returns:
            What it holds, and where it is: a path relative to the run directory, or a URL.
        """
        name = str(target.relative_to(self.run.path))
        source, keys = atomic.temporary(target), saved.keys()
        try:
            columns.write(source, saved.tables().values(), columns.made_from(self.schema, shard))
            content = _verified(source, rows, keys)
            self._check_failed(content)  # before the file has its name: a failed shard leaves none
            if self.output:
                return content, object_store.put(source, f"{self.output.rstrip('/')}/{self.run.name}/{name}")
            try:
                atomic.link_new(source, target)
            except FileExistsError:
                return self._accept_existing_file(target, rows, keys), name
        finally:
            source.unlink(missing_ok=True)
        atomic.sync(target.parent)
        return content, name

    def _check_failed(self, content: columns.Content) -> None:
        """Raise ShardError where more than the share `max_failed` failed, of the samples that the input holds."""
        lost = {r: n for r, n in content.reasons.items() if r.startswith(f"{FAILED}: {LOST}")}
        failed, held = (n - sum(lost.values()) for n in (content.counts.get(FAILED, 0), content.rows))
        if failed > self.max_failed * held:
            reasons = {r: n for r, n in content.reasons.items() if r.startswith(FAILED) and r not in lost} or {
                "failed: no reason given": 0
            }
            detail = f"{failed} of {held}, allowed {self.max_failed:.1%}"
            raise ShardError(f"too many samples failed: {max(reasons, key=lambda r: reasons[r])}", detail)

    def _accept_existing_file(self, target: Path, rows: int, keys: list[str]) -> columns.Content:
        """What the file at `target` holds, which an earlier owner published. ShardError where it is damaged."""
        try:
            return _verified(target, rows, keys)
        except (OSError, ShardError, pa.ArrowException) as error:
            # No marker names this file, so it may be put aside: the next attempt publishes a good one.
            target.rename(atomic.temporary(target))
            raise ShardError("output: an unmarked column file was damaged", f"{target}: {error}") from error


def _verified(path: Path, rows: int, keys: list[str]) -> columns.Content:
    """What a file holds, read back. ShardError where its rows are not these; OSError, ArrowException where damaged."""
    content = columns.inspect(path)
    if content.rows != rows:
        raise ShardError("output: wrong number of rows", f"{path} has {content.rows}, the shard has {rows}")
    if columns.keys(path) != keys:
        raise ShardError("output: wrong keys", f"{path} does not hold the shard's keys in the shard's order")
    return content
