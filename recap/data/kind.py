"""The protocol of a kind of input: tars, parquet files, ... Each kind is a small module of `recap.data.kinds`.

Planning, the index, map jobs, trainers, report and export know only the protocol. For every kind a sample is what it is
in a tar: a key, and members by extension. Of a table, a row is a sample and its columns are the members.
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
    """What a reader wants of each sample. Of a tar all members are read anyway, of a table only what is wanted.

    image: extensions or columns that hold the image, the first found counts; (): no image is wanted.
    key: the column of a table that holds the keys; "": the keys are the rows' numbers.
    members: extensions of further members; None: all that there are.
    """

    image: tuple[str, ...] = ()
    key: str = ""
    members: frozenset[str] | None = frozenset()

    @classmethod
    def everything(cls, data: Mapping[str, Any]) -> Wanted:
        """Everything of each sample. data: the `data` section of a run's config."""
        return cls(tuple(data.get("image") or ()), data.get("key") or "", None)


NOTHING = Wanted()


class Kind(Protocol):
    """One kind of input file. Objects hold no state of a run, and are used by several threads at a time."""

    name: str
    """The kind's name, for the index and for dry runs."""

    endings: tuple[str, ...]
    """Endings of the files' names. A file without any known ending is a tar."""

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        """The number of samples by uri, for shards where it is known before they are read.

        Args:
            how: the config's `data.expected`.
            known: uris of all files in the listed folders.
        """

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        """How these shards are read, for a dry run; "" where there is nothing to say. UserError: they cannot be."""

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """UserError for shards whose blocks cannot be read alone, as trainers read them (gzipped tars)."""

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        """All samples in order; at the end a `Damage` where the shard is not whole.

        Args:
            blocks: empty. The samples are counted in it, so that after the last one it is what `scan` would find, and
                `ended`; it stays not ended where that is not certain.

        Raises:
            ShardError, OSError: it cannot be read.
        """

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        """The blocks of the same samples.

        Raises:
            ShardError, OSError: it cannot be read, or not in ranges.
        """

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        """The samples of one block.

        Args:
            read: called with the number of bytes whenever some of the shard were read.
        """
