"""Webdataset tars as a kind of input. `recap.data.tars` defines what a sample is."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import IO, cast

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Shard
from recap.data.archive import UNREADABLE_LINK, Archive, single
from recap.data.blocks import Block, ShardBlocks
from recap.data.expected import ARCHIVES, expected_samples
from recap.data.kind import Wanted
from recap.data.remote import Ranges, fetch, open_shard
from recap.data.tars import Sample, read_archive, read_keys, read_samples

PIECE = 64 << 20  # bytes of a block that one request reads: all of it, unless its images are large
_END = 1024  # zero bytes that end a tar, appended to a block because it is cut out of one
_LOOKED_AT = 16  # tars whose first bytes are read at launch


def scan(file: IO[bytes]) -> ShardBlocks:
    """The blocks of an uncompressed tar, from its headers alone. Their samples are those of
    `recap.data.tars.read_samples`.

    The blocks of a damaged tar hold what can be read of it. A file that is no tar has none.

    Raises:
        ShardError: the tar is gzipped, or comes from a server without ranges.
    """
    if not file.seekable():
        raise ShardError("index: no ranges", "the server sends whole files only: copy the tars, or data.indexed=false")
    archive, made = Archive(file), ShardBlocks()
    if archive.packed:
        raise ShardError("index: not a plain tar", "gzipped tars have no ranges: unpack them, or data.indexed=false")
    for _ in _counted(made, read_keys(archive)):
        pass
    return made


def _counted(made: ShardBlocks, samples: Iterable[Sample | Damage]) -> Generator[Sample | Damage]:
    """The same samples, which are counted in `made` on the way."""
    for found in samples:
        if isinstance(found, Damage):
            made.damage = found
        else:
            made.add(found)
        yield found
    made.ended = True


class Tar:
    """See `recap.data.kind.Kind`. A block is a range of the tar's bytes."""

    name = "tar"
    endings: tuple[str, ...] = ARCHIVES

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        return expected_samples(how, uris, known)

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return ""

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """UserError for gzipped tars: all that are named so, and a few local ones whose first bytes show it."""
        local = [shard for shard in shards if "://" not in shard.uri]
        looked_at = {shard.id for shard in local[:: max(len(local) // _LOOKED_AT, 1)]}
        for shard in shards:
            if shard.uri.endswith((".tar.gz", ".tgz")) or (shard.id in looked_at and _gzipped(shard.uri)):
                raise UserError(
                    f"data: shard {shard.id}: {shard.uri} is gzipped, and trainings read ranges of tars. Unpack it (a "
                    "training of CLIP or DiT may stream all tars instead: data.indexed=false)."
                )

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        with open_shard(shard) as file:
            archive = Archive(file)
            has_ranges = file.seekable() and not archive.packed
            yield from _counted(blocks, read_archive(archive)) if has_ranges else read_archive(archive)

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        with open_shard(shard) as file:
            return scan(file)

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        def part(start: int, end: int) -> bytes:
            """Bytes [start, end) of the block, followed by zeros behind its end."""
            first, last = block.start + start, min(block.start + end, block.end)
            data = fetch(shard.uri, first, last) if first < last else b""
            read(len(data))
            return data + bytes(end - start - len(data))

        def linked(name: str) -> tuple[bytes | None, str]:
            """The target of a hard link in an earlier block. The index says where it lies."""
            if name not in block.links:
                return None, UNREADABLE_LINK
            start, end = block.links[name]
            return single(lambda: fetch(shard.uri, start, end), end - start)

        ranges = Ranges(part, block.end - block.start + _END, PIECE)
        file = cast(IO[bytes], io.BufferedReader(ranges, 1 << 20))
        return [s for s in read_samples(file, linked) if not isinstance(s, Damage)]


def _gzipped(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError:
        return False  # whoever reads it says so
