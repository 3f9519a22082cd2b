"""Tar archives, read to their last good byte: members in order, and what is wrong with the archive and where.

tarfile ends silently at damage, and a hostile header can make it use any amount of time and memory. This parser takes
time in proportion to the archive and memory for one member: names, extended headers and the number of their records
are bounded. Sparse files (all four formats of GNU tar and bsdtar) get their zeros back, and a hard link to an earlier
member has that member's content. The format: POSIX.1-2008 pax; sparse files: GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, cast

from hpc.operator import Damage
from recap.data.headers import (
    EXTENDED,
    LARGEST_HEADER,
    LONGEST_NAME,
    MOST_RECORDS,
    NextMember,
    looks_like,
    other_format,
    parse,
    pax,
    text,
    without_dot_slash,
)
from recap.data.sparse import MOST_PIECES, SparseMap, octal, old_pieces

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
LARGEST_MEMBER = 1 << 28  # bytes; larger members are skipped
_WINDOW = 1 << 26  # bytes of members kept for hard links, where the archive cannot be read twice
_PIECE = 1 << 20  # bytes read at a time: a garbage header may claim terabytes
_HEADER = 512  # bytes that a member costs in memory beside its content

UNREADABLE_LINK = "a link or device"

Place = tuple[int, int]
"""First byte of a member's headers and the byte after its content, in the unpacked archive."""


@dataclass(slots=True)
class Member:
    """One file of an archive.

    start, end: first byte of its headers and the byte after its content, in the unpacked archive.
    stored: bytes of its content in the archive; a sparse file is larger.
    odd: a phrase that says why its content cannot be read, else "".
    link, target: of a hard link, the name of the member that it leads to, and where that member lies.
    """

    name: str
    start: int
    end: int
    stored: int
    odd: str = ""
    sparse: SparseMap | None = None
    link: str = ""
    target: Place | None = None


Linked = Callable[[str], tuple[bytes | None, str]]
"""Finds a hard link's target, by name, outside the file that is being read: (content, why there is none)."""


class _Damaged(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.damage = Damage(reason, detail)


class Archive:
    """One pass over an archive. Call `take` or `step_over` for each member before asking for the next one.

    Args:
        file: the tar at its start, gzipped or not. Where it is seekable, skipped contents are not read, and only the
            targets of hard links are read a second time.
        linked: finds the targets of hard links that are not in this file (where it is one block of a tar).
    """

    def __init__(self, file: IO[bytes], linked: Linked | None = None) -> None:
        start = file.read(BLOCK)
        self.packed = start.startswith(b"\x1f\x8b")
        self._length: int | None = None  # of the file, where it can be sought
        if not self.packed and file.seekable():
            self._length = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._file = file
        else:
            joined = cast("IO[bytes]", _Joined(start, file))
            self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=joined)) if self.packed else joined
        self._linked = linked
        self._offset = 0  # of the next byte, in the unpacked archive
        self._block = b""  # the last header
        self._next = NextMember(0)
        self._ended = False
        self._places: dict[str, Place] | None = None  # by name; made when the first hard link is met
        self._window: OrderedDict[str, bytes] = OrderedDict()
        self._window_bytes = 0
        self.damages: list[Damage] = []
        """What is wrong with the archive; complete once `members` has ended."""

    def members(self) -> Iterator[Member]:
        """Every file in order. Links and devices are there too, with a phrase in `odd`."""
        try:
            while not self._ended and (info := self._header()) is not None:
                if info.type in EXTENDED:
                    self._extend(info)
                    continue
                member = self._member(info)
                unusable, self._next = self._next.unusable, NextMember(member.end)
                if unusable or info.isdir() or info.type not in tarfile.SUPPORTED_TYPES:
                    self._step(member.name, member.stored)  # vendors' types: unknown, but their data is there
                    continue
                self._require(member)
                yield member
                if self._places is not None:
                    self._places[without_dot_slash(member.name)] = member.target or (member.start, member.end)
        except _Damaged as error:
            self.damages.append(error.damage)

    def take(self, member: Member) -> bytes | None:
        """A member's content. None where it is odd, or where the archive ends within it, after which `members` ends."""
        try:
            data = self._content(member)
        except _Damaged as error:
            self.damages.append(error.damage)
            self._ended = True
            return None
        if self._length is None and data is not None:
            self._remember(member.name, data)
        return data

    def step_over(self, member: Member) -> bytes:
        """Skip a member's content."""
        try:
            self._step(member.name, member.stored)
        except _Damaged as error:
            self.damages.append(error.damage)
            self._ended = True
        return b""

    @property
    def ended(self) -> bool:
        """Whether the archive ended within the last member, which therefore does not count."""
        return self._ended

    # --- bytes ------------------------------------------------------------------------------

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        pieces, got = [], 0
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

    def _step(self, name: str, size: int) -> None:
        at, padded, got = self._offset, _padded(size), 0
        if self._length is not None:
            got = min(padded, self._length - at)
            self._offset += got
            self._file.seek(self._offset)
        else:
            while got < padded and (piece := self._read(min(padded - got, _PIECE))):
                got += len(piece)
        if got < size:
            raise _cut(name, at, got, size)

    def _data(self, name: str, size: int) -> bytes:
        at = self._offset
        data = self._read(_padded(size))
        if len(data) < size:
            raise _cut(name, at, len(data), size)
        return data[:size]

    def _require(self, member: Member) -> None:
        """Raise _Damaged where the file's length is known and the file ends before the member does."""
        if self._length is not None and self._offset + member.stored > self._length:
            raise _cut(member.name, self._offset, self._length - self._offset, member.stored)

    # --- headers ----------------------------------------------------------------------------

    def _header(self) -> tarfile.TarInfo | None:
        """The next header, None at the end of the archive. Looks for the next good one where there is garbage."""
        at = self._offset
        self._block = block = self._read(BLOCK)
        if len(block) < BLOCK:
            if block and at == 0 and other_format(block):
                raise _Damaged("tar: not a tar", looks_like(block))
            if block:
                raise _Damaged("tar: truncated", f"a header is cut off at byte {self._offset:,}")
            if at == 0:
                raise _Damaged("tar: zero bytes", "the file is empty")
            raise _Damaged("tar: no end of archive", f"the file ends at byte {at:,} without its two zero blocks")
        if block.count(0) == BLOCK:
            self._check_end(at)
            return None
        info = parse(block)
        if info is None:
            if at == 0:
                raise _Damaged("tar: not a tar", looks_like(block))
            info = self._resynchronise(at)
        return info

    def _resynchronise(self, at: int) -> tarfile.TarInfo:
        """The first good header after garbage: with the magic and the right checksum, which chance does not make."""
        while len(block := self._read(BLOCK)) == BLOCK:
            if block[257:262] == b"ustar" and (info := parse(block)) is not None:
                self._block, lost = block, self._offset - BLOCK - at
                self.damages.append(Damage("tar: garbage header", f"at byte {at:,}; read on after {lost:,} bytes"))
                self._next = NextMember(self._offset - BLOCK)  # earlier extended headers were for a lost member
                return info
        raise _Damaged("tar: garbage header", f"at byte {at:,}; no good header after it")

    def _check_end(self, at: int) -> None:
        """After the end mark there must be nothing but zeros: concatenated archives and holes are not whole."""
        while piece := self._read(_PIECE):
            if piece.count(0) != len(piece):
                raise _Damaged("tar: data after the end of the archive", f"the end mark is at byte {at:,}")

    def _extend(self, info: tarfile.TarInfo) -> None:
        """Read a pax or GNU header, which describes the next member."""
        at = self._offset
        if info.size > LARGEST_HEADER:
            self._refuse(at, f"an extended header of {info.size:,} bytes")
            self._step("an extended header", info.size)
            return
        data = self._data("an extended header", info.size)
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = pax(data)
            if records is None:
                self._refuse(at, f"a pax header of more than {MOST_RECORDS:,} records")
            else:
                self._next.take(records)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self._next.name = data.partition(b"\0")[0]
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            self._next.link = data.partition(b"\0")[0]

    def _refuse(self, at: int, what: str) -> None:
        self._next.unusable = True
        self.damages.append(Damage("tar: header too large", f"{what} at byte {at:,}; its member is left out"))

    # --- members ----------------------------------------------------------------------------

    def _member(self, info: tarfile.TarInfo) -> Member:
        extended = self._next
        name = info.name if extended.name is None else text(extended.name)
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        member = Member(
            name, extended.start, 0, (info.size if extended.size is None else extended.size) if has_data else 0
        )
        if max(len(extended.name or b""), len(extended.link or b"")) > LONGEST_NAME:
            self._refuse(extended.start, f"a name of more than {LONGEST_NAME:,} bytes")
        elif info.type == tarfile.GNUTYPE_SPARSE:
            member.sparse = self._old_sparse_map()
        elif info.isreg() and extended.sparse:
            member.sparse = SparseMap.of_records(extended.sparse)
        elif info.islnk():
            self._resolve(member, info.linkname if extended.link is None else text(extended.link))
        elif not has_data:
            member.odd = UNREADABLE_LINK
        if max(member.sparse.size if member.sparse else 0, member.stored) > LARGEST_MEMBER:
            member.odd = f"larger than {LARGEST_MEMBER >> 20} MiB"
        member.end = self._offset + _padded(member.stored)
        return member

    def _content(self, member: Member) -> bytes | None:
        if member.odd:
            self._step(member.name, member.stored)
            return None
        if member.link:
            return self._target(member)
        data = self._data(member.name, member.stored)
        if member.sparse is None:
            return data
        made = member.sparse.filled(data)
        if made is None:
            member.odd = "a damaged sparse file"
        return made

    def _old_sparse_map(self) -> SparseMap:
        """The map of an old GNU sparse file: it may go on in blocks after the header."""
        pieces = old_pieces(self._block[386:482])
        more, size = self._block[482:483], octal(self._block[483:495])
        while more not in (b"\0", b""):
            block = self._read(BLOCK)
            if len(pieces) <= MOST_PIECES:
                pieces += old_pieces(block[:504])
            more = block[504:505]
        return SparseMap(size, pieces)

    # --- hard links -------------------------------------------------------------------------

    def _resolve(self, member: Member, name: str) -> None:
        """Set a hard link's `link` and `target`: the last member of that name before it."""
        member.link = without_dot_slash(name)
        if self._length is not None:
            if self._places is None:
                self._places = self._find_places(member.start)
            member.target = self._places.get(member.link)
        known = member.target is not None or member.link in self._window
        if not known and self._linked is None:
            member.odd = UNREADABLE_LINK

    def _find_places(self, before: int) -> dict[str, Place]:
        """The places of all members before the first hard link, by one more pass over the headers."""
        self._file.seek(0)
        earlier = Archive(self._file)
        places = earlier._places = {}
        for found in earlier.members():
            if found.start >= before:
                break
            earlier.step_over(found)
        self._file.seek(self._offset)
        return places

    def _target(self, member: Member) -> bytes | None:
        data, why = self._window.get(member.link), UNREADABLE_LINK
        if data is None and member.target is not None:
            start, end = member.target
            self._file.seek(start)
            data, why = single(lambda: self._file.read(end - start), end - start)
            self._file.seek(self._offset)
        elif data is None and self._linked is not None:
            data, why = self._linked(member.link)
        if data is None:
            member.odd = why
        return data

    def _remember(self, name: str, data: bytes) -> None:
        """Keep the last members of an archive that cannot be read twice, for hard links to them."""
        name = without_dot_slash(name)
        self._window_bytes -= _cost(name, self._window.pop(name)) if name in self._window else 0
        self._window[name] = data
        self._window_bytes += _cost(name, data)
        while self._window_bytes > _WINDOW:
            self._window_bytes -= _cost(*self._window.popitem(last=False))


def single(read: Callable[[], bytes], size: int) -> tuple[bytes | None, str]:
    """(content, why there is none) of the single member in a range of an archive.

    Args:
        read: returns the range's bytes; not called where the range is too large.
        size: bytes of the range.
    """
    if size > LARGEST_MEMBER + 2 * LARGEST_HEADER:
        return None, f"larger than {LARGEST_MEMBER >> 20} MiB"
    archive = Archive(io.BytesIO(read()))
    for member in archive.members():
        return archive.take(member), member.odd or UNREADABLE_LINK
    return None, UNREADABLE_LINK


class _Joined:
    """A file again from its start, after its first bytes were read from a stream that is not seekable."""

    def __init__(self, start: bytes, file: IO[bytes]) -> None:
        self._start, self._file = start, file

    def read(self, size: int = -1) -> bytes:
        if self._start and size >= 0:
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        piece, self._start = self._start, b""
        return piece + self._file.read(size)


def _cut(name: str, at: int, got: int, size: int) -> _Damaged:
    where = f"{name} at byte {at:,} has {max(got, 0):,} of its {size:,} bytes"
    return _Damaged("tar: ends in the middle of a member", where)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _cost(name: str, data: bytes) -> int:
    return len(name) + len(data) + _HEADER
