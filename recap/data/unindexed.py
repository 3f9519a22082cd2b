"""Un-indexed tars (gzipped ones too), streamed with webdataset. The order is random, not planned: resume is
approximate.

A training that is resumed begins its present epoch's shards anew, in an order of its own; what was read of them before
is read again, and the rest of the tars may wait for the next epoch. Columns that lie beside the tars cannot be joined.
For exact resume and columns, let the index be made (`data.indexed: true`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from threading import Lock
from typing import Any

import webdataset

from hpc.errors import UserError
from hpc.operator import Shard
from recap.data.columns import Column, MemberColumn
from recap.data.joined import Joined
from recap.data.streams import mixed

log = logging.getLogger(__name__)

_NOWHERE = Shard("", "", 0)  # members of a tar are read of the sample alone
_TRIES = 1000  # samples that are passed over for one place


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
        shuffle: samples that are held to shuffle among.
    """

    def __init__(
        self, shards: list[Shard], columns: Mapping[str, Column], seed: int, epoch_size: int, shuffle: int = 4096
    ) -> None:
        for name, column in columns.items():
            if not isinstance(column, MemberColumn):
                raise UserError(
                    f"config: `data.columns.{name}`: columns beside the tars are joined through the index only. "
                    "Set data.indexed=true, or use a member of the tars."
                )
        self.columns = dict(columns)
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
            urls = [_url(s.uri) for s in order[rank::world]]
            data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False, handler=_note)
            for sample in data.shuffle(self._shuffle, seed=mixed(self._seed, epoch, rank)):
                yield self._joined(sample)
            epoch += 1

    def _joined(self, sample: dict[str, Any]) -> Joined:
        key, members = sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}
        columns = {name: c.read(_NOWHERE, 0, [key], [members]).values[0] for name, c in self.columns.items()}
        return Joined("", key, members, columns)


def _url(uri: str) -> str:
    """What webdataset opens: objects through the store's command line tool."""
    if uri.startswith("s3://"):
        return f"pipe:aws s3 cp {quote(uri)} -"
    return f"pipe:gsutil cat {quote(uri)}" if uri.startswith("gs://") else uri


def _note(error: Exception) -> bool:
    """Go on after damage, in words: webdataset would end or stop silently."""
    log.warning("un-indexed tars: %s", error)
    return True
