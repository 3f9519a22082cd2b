"""Single blocks of a shard, which pilots of jobs over images read. Tars need a block index for it; other kinds of files
know their own blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hpc.base.errors import ShardError, UserError
from hpc.base.fields import execution
from hpc.operator import Item, Shard
from recap.data.addresses import absolute
from recap.data.blocks import BLOCK, Block, block_sizes
from recap.data.index import Index, scan_shard
from recap.data.inputs import DataConfig
from recap.data.kind import Wanted
from recap.data.kinds import TAR, kind_of
from recap.data.tars import Sample


@dataclass
class IndexedDataConfig(DataConfig):
    """Where the samples are, and where each of their blocks lies."""

    index: str | None = execution(None, "file of the tars' block index, so that a pilot may draw any block of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.index = absolute(self.index) if self.index else None


class _Opened:
    """An open index, with the number of each of its shards by id."""

    def __init__(self, path: str) -> None:
        self.path, self.index = path, Index.open(path)
        self.numbers = {name: number for number, name in enumerate(self.index.ids())}

    def number(self, shard: Shard) -> int | None:
        """The shard's number in the index; None where it does not hold the shard. UserError where the shard changed."""
        number = self.numbers.get(shard.id)
        if number is None:
            return None
        known = self.index.shard(number)
        if shard.bytes and (known.bytes, known.etag) != (shard.bytes, shard.etag):
            raise UserError(
                f"data: {shard.uri} has changed since {self.path} was made. Make that again, or leave data.index out."
            )
        return number


_opened = lru_cache(maxsize=1)(_Opened)


def block_counts(data: IndexedDataConfig, shards: Sequence[Shard]) -> dict[str, list[int]]:
    """By shard id, the number of samples of each block; without the shards whose blocks cannot be read alone.

    Raises:
        UserError: `data.index` is no block index.
    """
    found: dict[str, list[int]] = {}
    for shard in shards:
        if kind_of(shard.uri) is not TAR:  # these files say themselves where their blocks are
            if shard.expected:
                found[shard.id] = block_sizes(shard.expected)
            continue
        opened = _opened(data.index) if data.index else None
        if opened and (number := opened.number(shard)) is not None:
            first, last = (int(bound) for bound in opened.index.bounds[number : number + 2])
            found[shard.id] = opened.index.counts(slice(first, last)).tolist()
    return found


def read_blocks(
    shard: Shard,
    numbers: Sequence[int],
    data: IndexedDataConfig,
    payload: Callable[[Sample], tuple[Any, int]],
    wanted: Wanted,
) -> Iterator[Item]:
    """The items of these blocks, as recap.data.pictures.read_items yields them.

    Args:
        numbers: of the blocks in the shard.
        payload: returns an item's payload, and the bytes that it holds in memory.

    Raises:
        ShardError: a block does not hold what the index says.
    """
    index, first = _index_of(shard, data, wanted)
    for number in numbers:
        block = index.block(first + number)
        samples = kind_of(shard.uri).block(shard, block, wanted, lambda size: None)
        _check(shard, block, samples)
        for at, sample in enumerate(samples):
            if at in block.problems:  # duplicate keys, which a block alone cannot notice
                sample.problems = [block.problems[at]]
            yield Item(shard.id, number * BLOCK + at, sample.key, *payload(sample), lost=sample.failure())


def _index_of(shard: Shard, data: IndexedDataConfig, wanted: Wanted) -> tuple[Index, int]:
    """An index that holds a shard, and the number of the shard's first block in it."""
    if data.index and kind_of(shard.uri) is TAR:
        opened = _opened(data.index)
        number = opened.number(shard)
        if number is None:
            raise ShardError("input: not in the block index", f"{shard.uri}, {data.index}")
        return opened.index, int(opened.index.bounds[number])
    return Index.of([(shard, scan_shard(shard, wanted))]), 0


def _check(shard: Shard, block: Block, samples: Sequence[Sample]) -> None:
    if len(samples) != block.count or samples[0].key != block.first:
        detail = f"{shard.uri}: block {block.number} holds other samples than the index says"
        raise ShardError("input: changed since its block index was made", detail)
