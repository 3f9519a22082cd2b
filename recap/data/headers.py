"""The headers of tar archives, parsed in bounded time and memory whatever they claim."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field

from recap.data.sparse import decimal

LARGEST_HEADER = 1 << 20  # bytes of an extended header
LONGEST_NAME = 4096  # bytes, as long as a path may be
MOST_RECORDS = 20_000  # in a pax header
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass
class NextMember:
    """What extended headers say about the member that follows them. start: byte of the first of its headers.

    sparse: records `GNU.sparse.<key>`. unusable: a header was too large, so that the member is left out.
    """

    start: int
    name: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)
    unusable: bool = False

    def take(self, records: list[tuple[bytes, bytes]]) -> None:
        """Add the records of a pax header. A sparse file's real name stands in a record of its own."""
        for key, value in records:
            if key == b"path":
                self.name = value
            elif key == b"linkpath":
                self.link = value
            elif key == b"size":
                self.size = decimal(value)
            elif key.startswith(b"GNU.sparse."):
                self.sparse.append((key[11:], value))
        self.name = dict(self.sparse).get(b"name", self.name)


def parse(block: bytes) -> tarfile.TarInfo | None:
    """A header, None where its checksum or a number in it is wrong."""
    try:
        # names become text: bytes that are not UTF-8 are written \xNN
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return None
    return None if info.size < 0 else info


def other_format(header: bytes) -> str:
    """The name of another format that a file's first bytes show; "" where they show none."""
    kinds = {b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"<": "HTML or XML"}
    return next((name for magic, name in kinds.items() if header.startswith(magic)), "")


def looks_like(header: bytes) -> str:
    """What a file seems to be by its first bytes, in words."""
    kind = other_format(header)
    return f"the file looks like {kind}" if kind else f"the file begins with {header[:16]!r}"


def pax(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """The records `<length> <key>=<value>\\n` of a pax header, as far as they are well-formed; None: too many."""
    records: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        length = decimal(data[at:space]) if space > at else None
        if length is None or not space - at + 2 < length <= len(data) - at:
            break
        if len(records) == MOST_RECORDS:
            return None
        key, _, value = data[space + 1 : at + length - 1].partition(b"=")
        records.append((key, value))
        at += length
    return records


def without_dot_slash(name: str) -> str:
    """A name without a leading `./`: `tar -c .` writes one, `tar -c *` does not.

    >>> without_dot_slash("./a/b.jpg"), without_dot_slash(".//././c"), without_dot_slash(".hidden")
    ('a/b.jpg', 'c', '.hidden')
    """
    at = 0
    while name.startswith("./", at):
        at += 2
        while name.startswith("/", at):
            at += 1
    return name[at:]


def text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
