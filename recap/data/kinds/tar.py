"""Webdataset tars; what is a sample of them, `recap.data.tars` says."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import IO, cast

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Shard
from recap.data.archive import LINK, Archive, single
from recap.data.blocks import Block, ShardBlocks
from recap.data.expected import ARCHIVES, expected_samples
from recap.data.kind import Wanted
from recap.data.remote import Ranges, fetch, open_shard
from recap.data.tars import Sample, read_archive, read_keys, read_samples

PIECE = 64 << 20  # bytes of a block that are asked for at a time: most blocks are smaller, those of large images not
_END = 1024  # zeros: a range of a tar has no end of its own
_LOOKED_AT = 16  # tars whose first bytes are read at launch


def scan(file: IO[bytes]) -> ShardBlocks:
    """The blocks of an uncompressed tar, from its headers alone. Samples are those of `recap.data.tars.read_samples`.

    Of a damaged tar, the blocks hold what can be read; of a file that is no tar there are none.

    Raises:
        ShardError: the tar is gzipped, or comes from a server without ranges.
    """
    if not file.seekable():
        raise ShardError("index: no ranges", "the server sends whole files only: copy the tars, or data.indexed=false")
    archive, made = Archive(file), ShardBlocks()
    if archive.packed:
        raise ShardError("index: not a plain tar", "gzipped tars have no ranges: unpack them, or data.indexed=false")
    for _ in _taken_in(made, read_keys(archive)):
        pass
    return made


def _taken_in(made: ShardBlocks, samples: Iterable[Sample | Damage]) -> Generator[Sample | Damage]:
    """The same samples; their blocks."""
    for found in samples:
        if isinstance(found, Damage):
            made.damage = found
        else:
            made.add(found)
        yield found
    made.ended = True


class Tar:
    """See `recap.data.kind.Kind`. A block is a range of bytes."""

    name = "tar"
    endings: tuple[str, ...] = ARCHIVES

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        return expected_samples(how, uris, known)

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return ""

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """All gzipped ones that are called so, and of those on a disk a few that are not."""
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
            yield from _taken_in(blocks, read_archive(archive)) if has_ranges else read_archive(archive)

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        with open_shard(shard) as file:
            return scan(file)

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        def part(start: int, end: int) -> bytes:
            """Of the block's range, and of the zeros behind it."""
            first, last = block.start + start, min(block.start + end, block.end)
            data = fetch(shard.uri, first, last) if first < last else b""
            read(len(data))
            return data + bytes(end - start - len(data))

        def linked(name: str) -> tuple[bytes | None, str]:
            """A hard link to a member of an earlier block: the index says where that lies."""
            if name not in block.links:
                return None, LINK
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
