"""Webdataset tars, read to their last good byte: samples in order, and what is wrong with the archive, by name and offset.

webdataset's own iterator (and tarfile's) ends silently at damage, so that a shard cut in half looks finished. This reader follows
webdataset's conventions (key = path up to the first dot of the base name; members of a sample stand together) and says what it
could not read. A test holds the two against each other on intact tars.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from hpc.operator import Damage

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
_LONGEST_NAME = 1 << 20  # bytes of an extended header; larger ones are garbage


@dataclass(slots=True)
class Sample:
    """The members of one sample, by extension (lower case, without the first dot).

    problems: fixed phrases, e.g. "key: duplicate"; the members are there all the same.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Damaged(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.damage = Damage(reason, detail)


def read_samples(file: IO[bytes]) -> Iterator[Sample | Damage]:
    """Samples in order; at the end a `Damage` if the archive is not whole.

    Args:
        file: the tar, positioned at its start; read sequentially, never seeked.
    """
    seen: set[str] = set()
    current: Sample | None = None
    damage: Damage | None = None
    try:
        for name, data in _members(file):
            key, extension = split_name(name)
            if not extension or not key:
                continue
            if current is None or current.key != key or extension in current.members:
                if current is not None:
                    yield current
                current = Sample(key)
                if key in seen:
                    current.problems.append("key: duplicate")
                seen.add(key)
            current.members[extension] = data
    except _Damaged as error:
        damage = error.damage
    if current is not None:
        yield current
    if damage is not None:
        yield damage


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: `a/b.c.jpg` is sample `a/b`, extension `c.jpg`. ("", "") for hidden and metadata names."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or not stem or base.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every regular file. Raises _Damaged where the archive cannot be read on."""
    offset = 0
    long_name: str | None = None
    while True:
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            if header:
                raise _Damaged("tar: truncated", f"a header is cut off at byte {offset + len(header):,}")
            if offset == 0:
                raise _Damaged("tar: zero bytes", "the file is empty")
            raise _Damaged("tar: no end of archive", f"the file ends at byte {offset:,} without its two zero blocks")
        if header.count(0) == BLOCK:
            return
        info = _parse(header, offset)
        size = info.size if info.isreg() or info.type in _EXTENDED else 0
        if info.type in _EXTENDED and size > _LONGEST_NAME:
            raise _Damaged("tar: garbage header", f"an extended header of {size:,} bytes at byte {offset:,}")
        data = _content(file, info.name, size, offset)
        offset += BLOCK + -(-size // BLOCK) * BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            long_name = _pax_path(data) or long_name
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type not in _EXTENDED:
            if info.isreg():
                yield long_name or info.name, data
            long_name = None


_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _parse(header: bytes, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if offset == 0:
            raise _Damaged("tar: not a tar", _looks_like(header)) from error
        raise _Damaged("tar: garbage header", f"at byte {offset:,}: {error}") from error


def _looks_like(header: bytes) -> str:
    kinds = {b"\x1f\x8b": "gzip", b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"<": "HTML or XML"}
    kind = next((name for magic, name in kinds.items() if header.startswith(magic)), "")
    return f"the file looks like {kind}" if kind else f"the file begins with {header[:16]!r}"


def _content(file: IO[bytes], name: str, size: int, offset: int) -> bytes:
    padded = -(-size // BLOCK) * BLOCK
    pieces, got = [], 0
    while got < padded:  # in pieces: a garbage header may claim terabytes
        piece = file.read(min(padded - got, 1 << 24))
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    if got < size:
        raise _Damaged(
            "tar: ends in the middle of a member", f"{name} at byte {offset:,} has {got:,} of its {size:,} bytes"
        )
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return data[:size]


def _pax_path(data: bytes) -> str | None:
    """The `path` of a pax header: records `<length> <key>=<value>\\n`."""
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or int(length) > len(data) or int(length) < 5:
            return None
        record, data = data[len(length) + 1 : int(length) - 1], data[int(length) :]
        key, _, value = record.partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return None
