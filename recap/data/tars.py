"""Webdataset tars, read to their last good byte: samples in order, and what is wrong with the archive and where.

webdataset's own iterator (and tarfile's) ends silently at damage, so that a shard cut in half looks finished. This
reader follows webdataset's conventions (key = path up to the first dot of the base name; members of a sample stand
together; gzip is seen through) and says what it could not read. A test holds the two against each other on intact tars.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

from hpc.operator import Damage

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
LARGEST_MEMBER = 1 << 28  # bytes; larger members are stepped over, not held
_LONGEST_NAME = 1 << 20  # bytes of an extended header; larger ones are garbage
_PIECE = 1 << 20  # bytes read at a time: a garbage header may claim terabytes

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(slots=True)
class Sample:
    """The members of one sample, by extension (lower case, without the first dot).

    odd: members that are there but cannot be had ({"jpg": "a link or device"}), by extension.
    problems: fixed phrases, "key: duplicate" or "key: split"; the members are there all the same.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def has(self, extension: str) -> bool:
        return extension in self.members or extension in self.odd


def read_samples(file: IO[bytes]) -> Iterator[Sample | Damage]:
    """Samples in order; at the end a `Damage` if the archive is not whole.

    Args:
        file: the tar, positioned at its start, gzipped or not; read sequentially, never seeked.
    """
    tar = _Tar(file)
    seen: dict[str, set[str]] = {}
    current: Sample | None = None
    for name, content in tar.members():
        key, extension = split_name(name)
        if not key:
            continue
        if current is None or current.key != key or current.has(extension):
            if current is not None:
                yield current
            current = Sample(key)
        _check_key(current, extension, seen)
        if isinstance(content, str):
            current.odd[extension] = content
        else:
            current.members[extension] = content
    if current is not None:
        yield current
    if tar.damages:
        first = tar.damages[0]
        more = f"; {len(tar.damages) - 1} more places are damaged" if len(tar.damages) > 1 else ""
        yield Damage(first.reason, first.detail + more)


def _check_key(sample: Sample, extension: str, seen: dict[str, set[str]]) -> None:
    """A key that comes back: with a member it had, it is a duplicate; with others only, its members were torn apart."""
    had = seen.setdefault(sample.key, set())
    fresh = not sample.members and not sample.odd
    if fresh and had:
        sample.problems.append("key: duplicate" if extension in had else "key: split")
    elif sample.problems == ["key: split"] and extension in had:
        sample.problems = ["key: duplicate"]
    had.add(extension)


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: `a/b.c.jpg` is sample `a/b`, extension `c.jpg`.

    ("", "") for dot files, names without an extension, and webdataset's metadata (`__name__`).
    """
    match = _KEY.fullmatch(name)
    if match is None or _META.match(name) or match[1].endswith("/"):
        return "", ""
    return match[1], match[2].lower()


class _Damaged(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.damage = Damage(reason, detail)


class _Tar:
    """One pass over an archive. What is wrong with it is in `damages` afterwards."""

    def __init__(self, file: IO[bytes]) -> None:
        start = file.read(BLOCK)
        if start.startswith(b"\x1f\x8b"):
            self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", _Joined(start, file))))
            start = b""
        else:
            self._file = file
        self._waiting = start  # read already, not yet parsed
        self._block = b""  # the last header
        self._offset = 0  # of the next byte, in the unpacked archive
        self._name: str | None = None  # from an extended header, for the next member
        self._size: int | None = None
        self.damages: list[Damage] = []

    def members(self) -> Iterator[tuple[str, bytes | str]]:
        """(name, content) of every file in order; content is a phrase where it cannot be had (links, huge files)."""
        try:
            while (header := self._header()) is not None:
                yield from self._member(header)
        except _Damaged as error:
            self.damages.append(error.damage)

    # --- bytes ------------------------------------------------------------------------------

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        pieces = [self._waiting[:size]]
        self._waiting = self._waiting[size:]
        got = len(pieces[0])
        try:
            while got < size and (piece := self._file.read(min(size - got, _PIECE))):
                pieces.append(piece)
                got += len(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._offset += got
            where = f"at byte {self._offset:,} unpacked: {error}"
            raise _Damaged("tar: gzip ends early or is damaged", where) from error
        self._offset += got
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _step_over(self, size: int) -> int:
        got = 0
        while got < size and (piece := self._read(min(size - got, _PIECE))):
            got += len(piece)
        return got

    # --- headers ----------------------------------------------------------------------------

    def _header(self) -> tarfile.TarInfo | None:
        """The next header, None at the end of the archive. Looks for the next good one where there is garbage."""
        at = self._offset
        self._block = block = self._read(BLOCK)
        if len(block) < BLOCK:
            if block:
                raise _Damaged("tar: truncated", f"a header is cut off at byte {self._offset:,}")
            if at == 0:
                raise _Damaged("tar: zero bytes", "the file is empty")
            raise _Damaged("tar: no end of archive", f"the file ends at byte {at:,} without its two zero blocks")
        if block.count(0) == BLOCK:
            self._check_end(at)
            return None
        info = _parse(block)
        if info is None:
            if at == 0:
                raise _Damaged("tar: not a tar", _looks_like(block))
            info = self._resynchronise(at)
        return info

    def _resynchronise(self, at: int) -> tarfile.TarInfo:
        """The first good header after garbage: with the magic and the right checksum, which chance does not make."""
        self._name = self._size = None
        while len(block := self._read(BLOCK)) == BLOCK:
            if block[257:262] == b"ustar" and (info := _parse(block)) is not None:
                self._block, lost = block, self._offset - BLOCK - at
                self.damages.append(Damage("tar: garbage header", f"at byte {at:,}; read on after {lost:,} bytes"))
                return info
        raise _Damaged("tar: garbage header", f"at byte {at:,}; no good header after it")

    def _check_end(self, at: int) -> None:
        """After the end mark there must be nothing but zeros: concatenated archives and holes are not whole."""
        while piece := self._read(_PIECE):
            if piece.count(0) != len(piece):
                raise _Damaged("tar: data after the end of the archive", f"the end mark is at byte {at:,}")

    # --- members ----------------------------------------------------------------------------

    def _member(self, info: tarfile.TarInfo) -> Iterator[tuple[str, bytes | str]]:
        if info.type in _EXTENDED:
            self._extend(info)
            return
        name = info.name if self._name is None else self._name
        size = info.size if self._size is None else self._size
        self._name = self._size = None
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._step_over_sparse(info)
            yield name, "a sparse file"
        elif info.isreg() and size <= LARGEST_MEMBER:
            yield name, self._content(name, size)
        elif info.isreg():
            self._content(name, size, keep=False)
            yield name, f"larger than {LARGEST_MEMBER >> 20} MiB"
        elif info.type not in tarfile.SUPPORTED_TYPES:  # vendors' types: unknown, but their data is there
            self._content(name, size, keep=False)
        elif not info.isdir():
            yield name, "a link or device"

    def _extend(self, info: tarfile.TarInfo) -> None:
        """Take in a pax or GNU header that speaks of the next member."""
        if info.size > _LONGEST_NAME:
            raise _Damaged("tar: garbage header", f"an extended header of {info.size:,} bytes at byte {self._offset:,}")
        data = self._content("an extended header", info.size)
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _pax(data)
            if b"path" in records:
                self._name = _text(records[b"path"])
            if records.get(b"size", b"").isdigit():
                self._size = int(records[b"size"])
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self._name = _text(data.split(b"\0")[0])

    def _content(self, name: str, size: int, *, keep: bool = True) -> bytes:
        at, padded = self._offset, -(-size // BLOCK) * BLOCK
        data = self._read(padded) if keep else b""
        got = len(data) if keep else self._step_over(padded)
        if got < size:
            where = f"{name} at byte {at:,} has {got:,} of its {size:,} bytes"
            raise _Damaged("tar: ends in the middle of a member", where)
        return data[:size]

    def _step_over_sparse(self, info: tarfile.TarInfo) -> None:
        """Old GNU sparse files: the map may go on in further blocks, and the data is not the file's content."""
        more = self._block[482:483]
        while more not in (b"\0", b""):
            more = self._read(BLOCK)[504:505]
        self._content(info.name, info.size, keep=False)


class _Joined:
    """Bytes read already, then the rest of the file: what gzip needs of a stream that cannot be seeked."""

    def __init__(self, start: bytes, file: IO[bytes]) -> None:
        self._start, self._file = start, file

    def read(self, size: int = -1) -> bytes:
        if self._start and size >= 0:
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        piece, self._start = self._start, b""
        return piece + self._file.read(size)


def _parse(block: bytes) -> tarfile.TarInfo | None:
    """A header, None where its checksum or a number in it is wrong."""
    try:
        # names become text: bytes that are not UTF-8 are written \xNN
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return None
    return None if info.size < 0 else info


def _looks_like(header: bytes) -> str:
    kinds = {b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"<": "HTML or XML"}
    kind = next((name for magic, name in kinds.items() if header.startswith(magic)), "")
    return f"the file looks like {kind}" if kind else f"the file begins with {header[:16]!r}"


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records `<length> <key>=<value>\\n` of a pax header, as far as they are well-formed."""
    records = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key], data = value, data[int(length) :]
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
