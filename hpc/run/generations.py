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
    """All reruns of one run. This object reads each file once, however often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[str] = set()
        self.damaged: list[str] = []  # files of which nothing is known
        self._by_bucket: dict[str, dict[str, int]] = {}
        self._keep: set[tuple[str, int]] = set()
        self._manifests: dict[tuple[str, int], tuple[int, dict[str, str]]] = {}  # with the rerun's number

    def open(
        self,
        generations: Mapping[str, int],
        reason: str,
        *,
        keep: bool = False,
        manifests: Mapping[str, str] | None = None,
    ) -> Path:
        """Record that a rerun grants these shards a fresh generation; returns the file.

        Args:
            generations: the new generation by shard id.
            keep: good samples stay as they are, and only the others are made again.
            manifests: of the columns that these shards read, as the rerun found them, see hpc.map.survey.
        """
        record = {"reason": reason, "keep": keep, "shards": dict(generations), "manifests": manifests or {}}
        data = atomic.as_json(record)
        number = self.next_number()
        while not atomic.create(self.folder / f"{number:06d}.json", data):
            number += 1
        return self.folder / f"{number:06d}.json"

    def next_number(self) -> int:
        """The number that the next rerun will have; they rise."""
        return max((_number(name) + 1 for name in self._names()), default=0)

    def count(self) -> int:
        """How many reruns there were. Costs one directory listing, so callers ask it to see whether anything is new."""
        return len(self._names())

    def opened(self) -> dict[str, int]:
        """The highest generation that reruns opened, by shard id."""
        return {shard: g for bucket in self.by_bucket().values() for shard, g in bucket.items()}

    def by_bucket(self) -> Mapping[str, Mapping[str, int]]:
        """The same in a mapping for each bucket of the ledger, as `hpc.run.ledger.states` takes it."""
        for name in self._names():
            if name not in self._read:
                self._load(name)
        return self._by_bucket

    def keeps(self, shard: str, generation: int) -> bool:
        """Whether a generation was opened for the bad samples of a shard alone (rerun --samples)."""
        self._catch_up(shard, generation)
        return (shard, generation) in self._keep

    def manifests(self, shard: str, generation: int, since: int) -> Mapping[str, str]:
        """Manifests of the columns that a shard reads, as the rerun found them that opened this generation. {} where it
        recorded none, or where its number is smaller than `since`: then the launch's own are newer.
        """
        self._catch_up(shard, generation)
        number, found = self._manifests.get((shard, generation), (-1, {}))
        return found if number >= since else {}

    def _catch_up(self, shard: str, generation: int) -> None:
        """Read new files where this generation is not known here: another slot saw the rerun first and claimed it."""
        if generation and self._by_bucket.get(bucket_of(shard), {}).get(shard, 0) < generation:
            self.by_bucket()

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
            manifests = {str(column): str(name) for column, name in record.get("manifests", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.damaged.append(name)
            damage.warn_once(damage.message(self.folder / name, f"{type(error).__name__}: {error}", _LOST))
            return
        for shard, generation in opened.items():
            bucket = self._by_bucket.setdefault(bucket_of(shard), {})
            bucket[shard] = max(generation, bucket.get(shard, 0))
            if record.get("keep", False):
                self._keep.add((shard, generation))
            if manifests:
                self._manifests[shard, generation] = _number(name), manifests


def _number(name: str) -> int:
    return int(name.partition(".")[0])
