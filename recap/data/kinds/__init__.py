"""The kinds of input, by the names of their files; the protocol is `recap.data.kind`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

from hpc.operator import Damage, Shard
from recap.data.blocks import ShardBlocks
from recap.data.kind import Kind, Wanted
from recap.data.kinds.arrow import Arrow
from recap.data.kinds.folder import Folder
from recap.data.kinds.parquet import Parquet
from recap.data.kinds.tar import Tar
from recap.data.tars import Sample

T = TypeVar("T")

TAR = Tar()
KINDS: tuple[Kind, ...] = (TAR, Parquet(), Arrow(), Folder())
"""Where a folder or a pattern has files of several kinds, those of the first are the shards. (Downloaders write parquet
files with metadata beside their tars.)"""

ENDINGS = tuple(ending for kind in KINDS for ending in kind.endings)


def kind_of(uri: str) -> Kind:
    """The kind of a file, by the ending of its name."""
    path = uri.partition("?")[0] if "://" in uri else uri
    return next((kind for kind in KINDS if path.endswith(kind.endings)), TAR)


def expected_samples(how: str, found: Iterable[str], known: AbstractSet[str]) -> dict[str, int]:
    """The number of samples by uri, for shards where it is known before they are read; see `Kind.expected`."""
    kinds = _by_kind((uri, uri) for uri in found)
    return {uri: count for kind, uris in kinds.items() for uri, count in kind.expected(how, uris, known).items()}


def check_ranges(shards: Sequence[Shard]) -> None:
    """UserError for shards whose blocks trainers cannot read; see `Kind.check_ranges`."""
    for kind, found in _by_kind((shard.uri, shard) for shard in shards).items():
        kind.check_ranges(found)


def samples_of(shard: Shard, wanted: Wanted, blocks: ShardBlocks | None = None) -> Generator[Sample | Damage]:
    """A shard's samples in order, whatever its kind; see `Kind.samples`."""
    return kind_of(shard.uri).samples(shard, wanted, ShardBlocks() if blocks is None else blocks)


def described(shards: Sequence[Shard], wanted: Wanted) -> str:
    """What a dry run says of the input: its kinds, how many shards each has, and how they are read.

    Raises:
        UserError: shards of a kind cannot be read as wanted.
    """
    told = []
    for kind, found in _by_kind((shard.uri, shard) for shard in shards).items():
        said = kind.check(found, wanted)
        told.append(f"{len(found):,} {kind.name}" + (f": {said}" if said else ""))
    return " · ".join(told)


def _by_kind(found: Iterable[tuple[str, T]]) -> dict[Kind, list[T]]:
    """Things by the kind of their uri."""
    kinds: dict[Kind, list[T]] = {}
    for uri, thing in found:
        kinds.setdefault(kind_of(uri), []).append(thing)
    return kinds
