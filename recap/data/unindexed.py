"""Streams tars without an index, gzipped ones too. The order is random and not planned, so that resume is approximate.

A resumed training reads the shards of its current epoch again from the start, in another order within them. Samples
that were read before are read again, and some may not be read until the next epoch. Columns beside the tars cannot be
joined. For exact resume and for columns, use an index (`data.indexed: true`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Shard
from recap.data.column import Column
from recap.data.columns import MemberColumn
from recap.data.joined import Joined
from recap.data.kind import NOTHING, Wanted
from recap.data.kinds import samples_of
from recap.data.tars import Sample
from recap.randomness import mixed

log = logging.getLogger(__name__)

_TRIES = 1000  # samples in a row that may be unusable
_POOL_BYTES = 1 << 31  # bytes of the pool of samples that the next one is drawn from
_FIRST = 100  # samples in the pool before the first is drawn


class _Stream:
    """An iterator that several decoding threads may take from."""

    def __init__(self, samples: Iterator[Joined]) -> None:
        self._samples, self._lock = samples, Lock()

    def next(self) -> Joined:
        with self._lock:
            return next(self._samples)


@dataclass(frozen=True, slots=True)
class StreamedSlot:
    """One place of the batch, filled with the next sample that comes."""

    stream: _Stream
    epoch: int

    def candidates(self) -> Iterator[Joined]:
        for _ in range(_TRIES):
            yield self.stream.next()
        raise UserError(f"data: {_TRIES:,} samples in a row cannot be used. Are these the right tars?")


class StreamedReader:
    """The same interface as `recap.data.joined.Reader`, without a plan.

    Args:
        wanted: what is read of each sample.
        shuffle: size of the pool that samples are drawn from at random.
    """

    def __init__(
        self,
        shards: list[Shard],
        columns: Mapping[str, Column],
        seed: int,
        epoch_size: int,
        wanted: Wanted = NOTHING,
        shuffle: int = 4096,
    ) -> None:
        for name, column in columns.items():
            if not isinstance(column, MemberColumn):
                raise UserError(
                    f"config: `data.columns.{name}`: columns beside the tars are joined through the index only. "
                    "Set data.indexed=true, or use a member of the tars."
                )
        self.columns, self._wanted = dict(columns), wanted
        self.epoch_size, self._shards, self._seed, self._shuffle = epoch_size, shards, seed, shuffle
        self._streams: dict[tuple[int, int], _Stream] = {}

    def batch(self, first: int, count: int, rank: int = 0, world: int = 1) -> list[StreamedSlot]:
        if (rank, world) not in self._streams:
            if len(self._shards) < world:
                raise UserError(
                    f"data: {len(self._shards)} un-indexed shards for {world} ranks: each needs one. "
                    "Set data.indexed=true, or use fewer ranks."
                )
            if first:
                log.warning(
                    "un-indexed tars: resume at sample %s is approximate: the shards of this epoch are read anew. "
                    "data.indexed=true makes it exact.",
                    f"{first:,}",
                )
            self._streams[rank, world] = _Stream(self._read(first // self.epoch_size, rank, world))
        stream = self._streams[rank, world]
        size = count * (rank + 1) // world - count * rank // world
        return [StreamedSlot(stream, first // self.epoch_size) for _ in range(size)]

    def close(self) -> None:
        self._streams.clear()

    def _read(self, epoch: int, rank: int, world: int) -> Iterator[Joined]:
        while True:
            order = sorted(self._shards, key=lambda s: mixed(self._seed, epoch, *s.id.encode()))
            samples = (sample for shard in order[rank::world] for sample in self._samples(shard))
            found = 0
            for sample in _shuffled(samples, self._shuffle, random.Random(mixed(self._seed, epoch, rank))):
                found += 1
                yield sample
            if not found:
                raise UserError(f"data: none of the {len(order[rank::world]):,} shards of rank {rank} has a sample.")
            epoch += 1

    def _samples(self, shard: Shard) -> Iterator[Joined]:
        """A shard's samples. What is wrong with it is logged."""
        try:
            for found in samples_of(shard, self._wanted):
                if isinstance(found, Damage):
                    log.warning("un-indexed tars: %s: %s: %s", shard.uri, found.reason, found.detail)
                else:
                    yield self._joined(shard, found)
        except (OSError, ShardError) as error:
            log.warning("un-indexed tars: %s: %s", shard.uri, error)

    def _joined(self, shard: Shard, sample: Sample) -> Joined:
        columns = {
            name: column.read(shard, 0, [sample.key], [sample.members]).values[0]
            for name, column in self.columns.items()
        }
        return Joined("", sample.key, sample.members, columns, sample.problems[0] if sample.problems else "")


def _shuffled(samples: Iterator[Joined], count: int, chance: random.Random) -> Iterator[Joined]:
    """Samples drawn at random from a pool, which grows with each one drawn up to `count`, or to _POOL_BYTES."""
    pool: list[Joined] = []
    held = drawn = 0
    for sample in samples:
        pool.append(sample)
        held += _size(sample)
        while len(pool) >= min(count, _FIRST + drawn) or held > _POOL_BYTES:
            found = _draw(pool, chance)
            held, drawn = held - _size(found), drawn + 1
            yield found
    while pool:
        yield _draw(pool, chance)


def _draw(pool: list[Joined], chance: random.Random) -> Joined:
    at = chance.randrange(len(pool))
    pool[at], pool[-1] = pool[-1], pool[at]
    return pool.pop()


def _size(sample: Joined) -> int:
    return sum(map(len, sample.members.values()))
