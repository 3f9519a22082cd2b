"""What each kind of input does: tars, parquet files, ... One small module of `recap.data.kinds` a kind.

Planning, the index, map jobs, trainers, report and export know the protocol alone. A sample is what it is in a tar: a
key, and members by extension; the columns of a table's row stand as members.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

from hpc.operator import Damage, Shard
from recap.data.blocks import Block, ShardBlocks
from recap.data.tars import Sample


@dataclass(frozen=True)
class Wanted:
    """What a reader wants of each sample. A tar gives all that it has; of a table nothing else is read.

    image: extensions or columns that hold the image, the first found counts; (): no image is wanted. key: column of
    the keys, "" for the rows' numbers. members: of what is wanted besides, as extensions; None: all there is.
    """

    image: tuple[str, ...] = ()
    key: str = ""
    members: frozenset[str] | None = frozenset()

    @classmethod
    def everything(cls, data: Mapping[str, Any]) -> Wanted:
        """Of a run's `data` section, as its submission keeps it."""
        return cls(tuple(data.get("image") or ()), data.get("key") or "", None)


NOTHING = Wanted()


class Kind(Protocol):
    """One kind of input file. Objects hold nothing of a run; readers of several threads share them."""

    name: str
    """As the index and a dry run call it."""

    endings: tuple[str, ...]
    """Of the files' names; any file without a known ending is a tar."""

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        """Samples by uri, where that can be known beforehand.

        Args:
            how: see `data.expected`. known: uris of all files that the listings named.
        """

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        """What a dry run says of how these shards are read; "" for nothing. UserError where they cannot be."""

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """UserError for shards whose blocks cannot be read without what lies before them, as trainers do."""

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        """All samples in order; at the end a `Damage` where the shard is not whole. ShardError, OSError: it cannot be
        read.

        Args:
            blocks: empty; is what `scan` finds once the samples are through and it is `ended`, which it becomes where
                that is certain.
        """

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        """The same samples' blocks. ShardError, OSError: as above, or it has no ranges."""

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        """The samples of one block.

        Args:
            read: told how many bytes of the shard were read.
        """
