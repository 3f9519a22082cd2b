"""Which shards reruns have granted a fresh start: `<run>/generations/<n>.json`, written once, never changed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hpc.base import atomic, damage
from hpc.run.ledger import bucket_of

_NAME = re.compile(r"[0-9]{6,}\.json")
_LOST = (
    "Which shards this rerun reopened is not known, but of those that were begun again since. Remove the file, and "
    "name the others again: python -m hpc.rerun RUN --shards A,B"
)


class Generations:
    """All reruns of one run. Each file is read once in the life of this object, however often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[str] = set()
        self.damaged: list[str] = []  # files of which nothing is known
        self._by_bucket: dict[str, dict[str, int]] = {}
        self._keep: set[tuple[str, int]] = set()

    def open(self, generations: Mapping[str, int], reason: str, *, keep: bool = False) -> Path:
        """Record that a rerun grants these shards a fresh generation; with `keep`, their good samples stay as they
        are.
        """
        data = atomic.as_json({"reason": reason, "keep": keep, "shards": dict(generations)})
        number = max((int(name.partition(".")[0]) + 1 for name in self._names()), default=0)
        while not atomic.create(self.folder / f"{number:06d}.json", data):
            number += 1
        return self.folder / f"{number:06d}.json"

    def count(self) -> int:
        """Changes when a rerun has opened something; one directory listing."""
        return len(self._names())

    def opened(self) -> dict[str, int]:
        """The highest generation that reruns opened, by shard id."""
        return {shard: g for bucket in self.by_bucket().values() for shard, g in bucket.items()}

    def by_bucket(self) -> Mapping[str, Mapping[str, int]]:
        """The same, apart for each directory of the ledger, as `hpc.run.ledger.states` takes it."""
        for name in self._names():
            if name not in self._read:
                self._load(name)
        return self._by_bucket

    def keeps(self, shard: str, generation: int) -> bool:
        """Whether a generation was opened for the bad samples of a shard alone (rerun --samples)."""
        if generation == 0:
            return False
        known = self._by_bucket.get(bucket_of(shard), {})
        if known.get(shard, 0) < generation:  # another slot saw this rerun first
            self.by_bucket()
        return (shard, generation) in self._keep

    def _names(self) -> list[str]:
        try:
            return sorted(n for n in os.listdir(self.folder) if _NAME.fullmatch(n))
        except FileNotFoundError:
            return []

    def _load(self, name: str) -> None:
        self._read.add(name)
        try:
            record = json.loads((self.folder / name).read_bytes())
            opened = {str(shard): int(generation) for shard, generation in record["shards"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.damaged.append(name)
            damage.say(damage.text(self.folder / name, f"{type(error).__name__}: {error}", _LOST))
            return
        for shard, generation in opened.items():
            bucket = self._by_bucket.setdefault(bucket_of(shard), {})
            bucket[shard] = max(generation, bucket.get(shard, 0))
            if record.get("keep", False):
                self._keep.add((shard, generation))
