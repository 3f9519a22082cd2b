"""GNU sparse files inside tars: which pieces of a file are stored, and the whole file with its zeros.

Four formats: old GNU (a table in the header), pax 0.0 (two records for each piece), 0.1 (one list) and 1.0 (the list is
at the start of the data; bsdtar's default on macOS). Source: GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import cast

MOST_PIECES = 65_536  # as many as a file of 256 MiB, the largest that is read, has pages of 4 KiB
_BLOCK = tarfile.BLOCKSIZE
_LINE = 21  # bytes: 20 digits and the newline

Pieces = list[tuple[int, int]]
"""(offset in the file, bytes)"""


@dataclass(frozen=True, slots=True)
class SparseMap:
    """A sparse file's size in bytes and its pieces. in_data: the list of pieces is at the start of the data (pax
    1.0)."""

    size: int
    pieces: Pieces | None  # None: damaged
    in_data: bool = False

    @classmethod
    def of_records(cls, records: list[tuple[bytes, bytes]]) -> SparseMap:
        """From pax records `GNU.sparse.<key>=<value>`, in their order."""
        said = dict(records)
        size = decimal(said.get(b"realsize", said.get(b"size", b"")))
        if size is None:
            return cls(0, None)
        if said.get(b"major", b"0") != b"0":
            return cls(size, [], in_data=True)
        if b"map" in said:
            return cls(size, _pairs(said[b"map"].split(b",") if said[b"map"] else []))
        return cls(size, _pairs([value for key, value in records if key in (b"offset", b"numbytes")]))

    def filled(self, data: bytes) -> bytes | None:
        """The whole file. data: what is stored of it. None where the map does not fit the data."""
        pieces, at = _map_in(data) if self.in_data else (self.pieces, 0)
        if pieces is None or len(pieces) > MOST_PIECES:
            return None
        made, end = bytearray(self.size), 0
        for offset, size in pieces:
            if offset < end or offset + size > self.size or at + size > len(data):
                return None
            made[offset : offset + size] = data[at : at + size]
            at, end = at + size, offset + size
        return bytes(made) if len(data) - at < _BLOCK else None


def old_pieces(table: bytes) -> Pieces:
    """The pieces of an old GNU header, 12 bytes a number. Those without bytes are left out."""
    numbers = [octal(table[at : at + 12]) for at in range(0, len(table) - 11, 12)]
    return [(at, size) for at, size in zip(numbers[::2], numbers[1::2], strict=True) if size]


def _pairs(numbers: list[bytes]) -> Pieces | None:
    found = [decimal(number) for number in numbers[: 2 * MOST_PIECES + 1]]
    if None in found or len(found) % 2:
        return None
    values = cast("list[int]", found)
    return list(zip(values[::2], values[1::2], strict=True))


def _map_in(data: bytes) -> tuple[Pieces | None, int]:
    """(pieces, where the file's own data begins) for pax 1.0, whose data begins with lines: the number of pieces, then
    the offset and the bytes of each."""
    first = data.find(b"\n", 0, _LINE)
    count = decimal(data[:first]) if first > 0 else None
    if count is None or count > MOST_PIECES:
        return None, 0
    lines = data[first + 1 : first + 1 + 2 * count * _LINE].split(b"\n", 2 * count)[: 2 * count]
    used = first + 1 + sum(len(line) + 1 for line in lines)
    return _pairs(lines if count else []), -(-used // _BLOCK) * _BLOCK


def decimal(digits: bytes) -> int | None:
    """A decimal number of at most 20 digits: Python refuses longer ones, or takes quadratic time for them."""
    return int(digits) if len(digits) <= 20 and digits.isdigit() else None


def octal(digits: bytes) -> int:
    """A number as tar headers write it (octal or base-256); 0 where it is not a number."""
    try:
        return max(tarfile.nti(digits), 0)  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return 0
