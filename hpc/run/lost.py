"""Published files that are gone although their markers say that they are there. Found by comparing names of markers
with names of files, a bucket at a time.
"""

from __future__ import annotations

import os
import time

from hpc.base import object_store
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE, states

EVERY_S = 60.0  # between the starts of two rounds through all buckets
_LOOK_S = 0.5  # that one `look` may take: of a very large run it sees a part, and later ones see the rest


def message_and_command(shards: list[str], run: str) -> tuple[str, str]:
    """The message that the files of these shards are gone, and the command that makes them again."""
    what = f"{len(shards):,} published files are gone (first: {shards[0]}). Make them again:"
    return what, f"python -m hpc.rerun {run} --shards {','.join(shards)}"


class LostFiles:
    """Looks for such files again and again, each time for a moment."""

    def __init__(self, run: Run, latest: Submission) -> None:
        self._run, self._latest = run, latest
        self._ledger = run.ledger(latest.identity)
        self._found: dict[str, list[str]] = {}  # shards by bucket
        self._left: list[str] = []  # buckets of this round
        self._next = 0.0
        self._generations = -1

    def look(self) -> list[str]:
        """Ids of shards that are done and whose file is gone, in the buckets that were looked at so far."""
        now, generations = time.monotonic(), self._run.generations.count()
        if generations != self._generations:
            self._found, self._left, self._next, self._generations = {}, [], 0.0, generations
        if not self._left and now >= self._next:
            buckets, self._next = self._ledger.buckets(), now + EVERY_S
            begin = int(time.time() / EVERY_S) % max(1, len(buckets))
            self._left = buckets[begin:] + buckets[:begin]
        while self._left and time.monotonic() < now + _LOOK_S:
            bucket = self._left.pop()
            self._found[bucket] = self._of_bucket(bucket)
        return sorted(shard for found in self._found.values() for shard in found)

    def all(self) -> list[str]:
        """The same in all buckets, however long it takes."""
        return sorted(shard for bucket in self._ledger.buckets() for shard in self._of_bucket(bucket))

    def _of_bucket(self, bucket: str) -> list[str]:
        folder = self._run.path / "columns" / self._latest.column / self._latest.identity / bucket
        found = states(self._ledger.names(bucket), self._run.generations.by_bucket().get(bucket))
        try:  # after the markers: a file is there before its marker
            there = set(os.listdir(folder))
        except FileNotFoundError:
            there = set()
        done = ((shard, state.generation) for shard, state in found.items() if state.status == DONE)
        gone = [(i, g) for i, g in done if f"{i}.g{g}.parquet" not in there]
        return [i for i, g in gone if not object_store.is_url(str(self._ledger.read(i, f"g{g}.done").get("file", "")))]
