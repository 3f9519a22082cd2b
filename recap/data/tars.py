"""Webdataset tars as samples in order, and what is wrong with the archive and where.

webdataset's own iterator (and tarfile's) ends silently at damage, so that a shard cut in half looks finished. This
reader follows webdataset's conventions (the key is the path up to the first dot of the base name; members of a sample
are consecutive; gzip is unpacked) and reports what it could not read. A test compares the two on intact tars. The map
jobs, the training index and its blocks, the un-indexed stream and the exports all read tars through it, so that they
agree on what a sample is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import IO

from hpc.operator import LOST, Damage
from recap.data.archive import Archive, Linked, Member, Place
from recap.data.headers import without_dot_slash

READING_2 = "sparse members, hard links, names with ./, byte order marks and UTF-16 are read as they are meant now"
"""What version 2 of every operator that reads tars changed; see `changes` in hpc.operator."""

LARGEST_SAMPLE = 1 << 28  # bytes of all members; of a larger sample the largest members are left out
MOST_NAMES = 1 << 29  # bytes of memory for the keys of one tar, which are all held to find duplicates
_OVERHEAD = 100  # bytes of memory that a name takes besides its letters


@dataclass(slots=True)
class Sample:
    """The members of one sample, by extension (lower case, without the first dot).

    odd: members that exist but cannot be read, by extension, with a phrase ({"jpg": "a link or device"}).
    problems: fixed phrases, "key: duplicate" or "key: split"; the members are there all the same.
    lost: why nothing of it can be read ("in a damaged row group"), "" where it can.
    start, end: bytes of the unpacked archive that hold its members.
    links: its hard links: (name of the target, bytes of the archive that hold the target).
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: str = ""
    start: int = 0
    end: int = 0
    links: list[tuple[str, Place]] = field(default_factory=list)

    def has(self, extension: str) -> bool:
        return extension in self.members or extension in self.odd

    def failure(self) -> str:
        """The reason for the row of a lost sample, "" for others; see `lost` of hpc.operator.Item."""
        return f"{LOST}{self.lost}" if self.lost else ""


def read_samples(file: IO[bytes], linked: Linked | None = None) -> Iterator[Sample | Damage]:
    """Samples in order; at the end a `Damage` if the archive is not whole.

    Args:
        file: the tar at its start, gzipped or not.
        linked: finds the targets of hard links that are not in this file (where it is one block of a tar).
    """
    yield from read_archive(Archive(file, linked))


def read_archive(archive: Archive) -> Iterator[Sample | Damage]:
    """The same of an archive of which nothing was read yet."""
    yield from _grouped(archive, contents=True)
    yield from _damage(archive)


def read_keys(archive: Archive) -> Iterator[Sample | Damage]:
    """The same samples, read from the headers alone: each has all its members, with empty content."""
    yield from _grouped(archive, contents=False)
    yield from _damage(archive)


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: `a/b.c.jpg` is sample `a/b`, extension `c.jpg`.

    ("", "") for dot files, names without an extension, and webdataset's metadata (`__name__`, `b.__name__`).
    """
    folder, slash, base = without_dot_slash(name).rpartition("/")
    stem, dot, extension = base.partition(".")
    first = folder.partition("/")[0] if folder else base
    if not stem or not dot or _is_metadata(first) or _is_metadata(extension):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _is_metadata(part: str) -> bool:
    return len(part) >= 4 and part.startswith("__") and part.endswith("__")


def _grouped(archive: Archive, contents: bool) -> Iterator[Sample]:
    keys, current = _Keys(), None
    for member in archive.members():
        key, extension = split_name(member.name)
        data = archive.take(member) if contents and key else archive.step_over(member)
        if archive.ended:
            break  # within this member, which therefore does not count
        if not key:
            continue
        if current is None or current.sample.key != key or current.sample.has(extension):
            if current is not None:
                yield current.sample
                keys.close(current)
            current = _Open(Sample(key, start=member.start), keys.had(key))
        current.add(member, extension, data)
        if keys.bytes + current.names > MOST_NAMES:
            archive.damages.append(Damage("tar: too many samples", f"the first {member.start:,} bytes were read"))
            break
    if current is not None:
        yield current.sample


def _damage(archive: Archive) -> Iterator[Damage]:
    if archive.damages:
        first, *others = archive.damages
        yield Damage(first.reason, first.detail + (f"; {len(others)} more places are damaged" if others else ""))


class _Open:
    """The sample whose members are being read. had: extensions that earlier samples with the same key had."""

    def __init__(self, sample: Sample, had: frozenset[str]) -> None:
        self.sample, self.had = sample, had
        self.names = len(sample.key) + _OVERHEAD
        self._bytes = 0
        self._largest: list[tuple[int, str]] = []  # a heap of (-bytes, extension)

    def add(self, member: Member, extension: str, data: bytes | None) -> None:
        sample = self.sample
        self._check_key(extension)
        self.names += len(extension) + _OVERHEAD
        sample.end = member.end
        if member.target is not None:
            sample.links.append((member.link, member.target))
        if data is None:
            sample.odd[extension] = member.odd
            return
        sample.members[extension] = data
        self._bytes += len(data) + _OVERHEAD
        heappush(self._largest, (-len(data), extension))
        while self._bytes > LARGEST_SAMPLE and self._largest:
            size, largest = heappop(self._largest)
            self._bytes += size
            del sample.members[largest]
            sample.odd[largest] = f"left out of a sample larger than {LARGEST_SAMPLE >> 20} MiB"

    def _check_key(self, extension: str) -> None:
        """Note a problem where the key occurred before: a duplicate where it had this extension too, else a sample
        whose members are not consecutive."""
        sample = self.sample
        fresh = not sample.members and not sample.odd
        if fresh and self.had:
            sample.problems.append("key: duplicate" if extension in self.had else "key: split")
        elif sample.problems == ["key: split"] and extension in self.had:
            sample.problems = ["key: duplicate"]


class _Keys:
    """The extensions that each key of a tar has had so far. Equal sets of them are held once. bytes: memory they
    take."""

    def __init__(self) -> None:
        self._seen: dict[str, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self.bytes = 0

    def had(self, key: str) -> frozenset[str]:
        return self._seen.get(key, frozenset())

    def close(self, current: _Open) -> None:
        sample = current.sample
        found = current.had.union(sample.members, sample.odd)
        known = self._sets.setdefault(found, found)
        self.bytes += len(sample.key) + _OVERHEAD if known is not found else current.names
        self._seen[sample.key] = known
